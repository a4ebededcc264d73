"""Meshes of devices: written as `data=2,model=4`.

Sequences are split over `data`. Heads, MLP channels, experts and the vocabulary are split over
`model` (tensor parallel, Megatron-LM, arXiv 1909.08053). A mesh may span several hosts, each with
one process of `jax.distributed`.
"""

import math
import re
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh

from models.sharding.axes import DATA, GROUP, KV_HEADS
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.messages import show

__all__ = [
    "MeshSizes",
    "check_devices",
    "check_heads",
    "check_states",
    "divisors",
    "make_mesh",
    "mesh_sizes",
    "over_heads",
]


class MeshSizes(NamedTuple):
    """Devices along each axis of a mesh."""

    data: int = 1
    model: int = 1

    def __str__(self) -> str:
        """As it is written: without the axes of one device."""
        sizes = [f"{name}={size}" for name, size in self._asdict().items() if size != 1]
        return ",".join(sizes) or "data=1"


_NAMES = MeshSizes._fields


def make_mesh(mesh: str | Mesh) -> Mesh:
    """A mesh with the axes `data` and `model`.

    Args:
        mesh: `data=2,model=4`, an axis left out being 1, or a mesh with such axes. Text takes
            the first devices that there are.

    Raises:
        ValueError: text of another form, axes of other names, or more devices than there are.
    """
    types = (AxisType.Auto,) * len(_NAMES)
    if isinstance(mesh, Mesh):
        names = mesh.axis_names
        if not names or not set(names) <= set(_NAMES):
            raise ValueError(f"mesh: expected axes data and model, got {show(list(names))}")
        devices = mesh.devices.transpose([names.index(name) for name in _NAMES if name in names])
        return Mesh(devices.reshape(MeshSizes(**mesh.shape)), _NAMES, axis_types=types)
    sizes = mesh_sizes(mesh)
    check_devices(sizes, jax.device_count(), jax.process_count())
    return jax.make_mesh(sizes, _NAMES, axis_types=types)


def over_heads(mesh: str | Mesh, kv_heads: int) -> Mesh:
    """The mesh for caches of so many KV heads: its axis `model` in two, `KV_HEADS` and `GROUP`.

    Raises:
        ValueError: as `make_mesh`, or `model` neither divides `kv_heads` nor is a multiple of them.
    """
    plain = make_mesh(mesh)
    parts = plain.shape["model"]
    check_heads(parts, kv_heads)
    split = min(kv_heads, parts)
    devices = plain.devices.reshape(plain.shape["data"], split, parts // split)
    names = (DATA, KV_HEADS, GROUP)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def check_states(mesh: Mesh, cache: AnyCache) -> None:
    """Raises ValueError where `model` does not divide the heads of a cache's recurrent states."""
    states = cache.recurrent if isinstance(cache, LayeredCache) else None
    parts = mesh.shape[KV_HEADS] * mesh.shape[GROUP]
    for heads in [] if states is None else [x.shape[2] for x in states.values]:
        if heads % parts:
            raise ValueError(
                f"mesh axis model={parts} does not divide the {heads} heads of recurrent states"
            )


def mesh_sizes(text: str) -> MeshSizes:
    """The sizes that a text such as `data=2,model=4` states; raises as `make_mesh`."""
    expected = "mesh: expected sizes of the axes data and model, such as data=2,model=4"
    if not isinstance(text, str):
        raise ValueError(f"{expected}, or a jax.sharding.Mesh with them, got {show(text)}")
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(data|model)\s*=\s*([1-9][0-9]{0,5})\s*", part)
        if match is None or match[1] in sizes:
            raise ValueError(f"{expected}, got {show(text)}")
        sizes[match[1]] = int(match[2])
    return MeshSizes(**sizes)


def check_heads(parts: int, kv_heads: int) -> None:
    """Raises ValueError unless parts of `model` share out KV heads, or heads share out parts."""
    if kv_heads % parts and parts % kv_heads:
        raise ValueError(
            f"mesh axis model={parts} is neither a divisor nor a multiple of "
            f"num_key_value_heads={kv_heads}"
        )


def check_devices(sizes: MeshSizes, there: int, hosts: int) -> None:
    """Raises ValueError where a mesh takes more devices than there are, or leaves hosts out.

    Args:
        sizes: from `mesh_sizes`.
        there: devices of all hosts together.
    """
    wanted = math.prod(sizes)
    if wanted > there or (hosts > 1 and wanted < there):
        on = "" if hosts == 1 else f" on {hosts} hosts, and a mesh takes all of them"
        raise ValueError(f"mesh {sizes} needs {wanted} devices, there are {there}{on}")


def divisors(number: int) -> str:
    """The divisors of a number up to 4,096, for a message."""
    return ", ".join(str(n) for n in range(1, min(number, 4096) + 1) if number % n == 0)
