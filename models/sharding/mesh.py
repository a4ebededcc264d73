"""Meshes of devices: written as `data=2,model=4`.

Sequences are split over `data`. Heads, MLP channels, experts and the vocabulary are split over
`model` (tensor parallel, Megatron-LM, arXiv 1909.08053). A mesh may span several hosts, each with
one process of `jax.distributed`.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from models.sharding.axes import DATA, GROUP, KV_HEADS
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.messages import show

__all__ = [
    "check_devices",
    "check_heads",
    "check_states",
    "check_text",
    "divisors",
    "make_mesh",
    "over_heads",
]

_NAMES = ("data", "model")


def make_mesh(mesh: str | Mesh) -> Mesh:
    """A mesh with the axes `data` and `model`.

    Args:
        mesh: `data=2,model=4`, an axis left out being 1, or a mesh with such axes. Text takes
            the first devices that there are.

    Raises:
        ValueError: text of another form, axes of other names, or more devices than there are.
    """
    if isinstance(mesh, Mesh):
        sizes = dict(mesh.shape)
        if not sizes or not set(sizes) <= set(_NAMES):
            raise ValueError(f"mesh: expected axes data and model, got {show(list(sizes))}")
        order = [mesh.axis_names.index(name) for name in _NAMES if name in sizes]
        devices = mesh.devices.transpose(order)
    else:
        sizes = check_text(mesh)
        devices = _devices(sizes)
    shape = [sizes.get(name, 1) for name in _NAMES]
    return Mesh(devices.reshape(shape), _NAMES, axis_types=(AxisType.Auto,) * len(_NAMES))


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


def check_text(text: str) -> dict[str, int]:
    """The sizes by axis that a text such as `data=2,model=4` states; raises as `make_mesh`."""
    expected = "mesh: expected sizes of the axes data and model, such as data=2,model=4"
    if not isinstance(text, str):
        raise ValueError(f"{expected}, or a jax.sharding.Mesh with them, got {show(text)}")
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(data|model)\s*=\s*([1-9][0-9]{0,5})\s*", part)
        if match is None or match[1] in sizes:
            raise ValueError(f"{expected}, got {show(text)}")
        sizes[match[1]] = int(match[2])
    return sizes


def check_heads(parts: int, kv_heads: int) -> None:
    """Raises ValueError unless parts of `model` share out KV heads, or heads share out parts."""
    if kv_heads % parts and parts % kv_heads:
        raise ValueError(
            f"mesh axis model={parts} is neither a divisor nor a multiple of "
            f"num_key_value_heads={kv_heads}"
        )


def check_devices(sizes: dict[str, int], there: int, hosts: int) -> None:
    """Raises ValueError where a mesh takes more devices than there are, or leaves hosts out.

    Args:
        sizes: from `check_text`.
        there: devices of all hosts together.
    """
    wanted = math.prod(sizes.values())
    if wanted > there or (hosts > 1 and wanted < there):
        written = ",".join(f"{name}={size}" for name, size in sizes.items())
        on = "" if hosts == 1 else f" on {hosts} hosts, and a mesh takes all of them"
        raise ValueError(f"mesh {written} needs {wanted} devices, there are {there}{on}")


def _devices(sizes: dict[str, int]) -> np.ndarray:
    check_devices(sizes, jax.device_count(), jax.process_count())
    names = tuple(name for name in _NAMES if name in sizes)
    shape = tuple(sizes[name] for name in names)
    auto = (AxisType.Auto,) * len(names)
    return jax.make_mesh(shape, names, axis_types=auto).devices.reshape(
        [sizes.get(name, 1) for name in _NAMES]
    )


def divisors(number: int) -> str:
    """The divisors of a number up to 4,096, for a message."""
    return ", ".join(str(n) for n in range(1, min(number, 4096) + 1) if number % n == 0)
