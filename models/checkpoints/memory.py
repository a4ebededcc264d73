"""Whether a model's weights fit the memory that is free, before they are read."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from models.checkpoints.folder import Checkpoint
from models.checkpoints.location import find_folder
from models.sharding.axes import DATA
from vkq_jax.byte_units import human_bytes
from vkq_jax.messages import show_path

__all__ = ["check_memory", "free_memory", "own_devices", "weight_bytes"]

_CGROUP = Path("/sys/fs/cgroup")


def check_memory(folder: Path, needed: int, mesh: Mesh | None = None) -> None:
    """Raises MemoryError where `needed` bytes of weights are more than this process has free.

    Over a mesh each row of `data` holds the weights once, split over its devices.
    """
    devices = None
    if mesh is not None:
        devices = own_devices(mesh)
        needed = needed * mesh.shape[DATA] * len(devices) // mesh.size
    free = free_memory(devices)
    if free is not None and needed > free:
        kind = jax.devices()[0].device_kind
        place = kind if devices is None else f"{len(devices)} x {kind}"
        raise MemoryError(
            f"{show_path(folder)}: the weights take {human_bytes(needed)}, and {human_bytes(free)} "
            f"are free on {place}: expected a device with more memory, a narrower dtype, or a "
            "smaller model"
        )


def weight_bytes(path: str | os.PathLike[str], itemsize: int = 2) -> int:
    """Bytes of all tensors in a checkpoint's files, `itemsize` bytes a number (2: bfloat16).

    Raises:
        FileNotFoundError, ValueError: as `models.load`.
    """
    tensors = Checkpoint(find_folder(path)).tensors
    return itemsize * sum(math.prod(info.shape) for info in tensors.values())


def own_devices(mesh: Mesh) -> list[Any]:
    """The `jax.Device`s of a mesh that this process drives."""
    return [one for one in mesh.devices.flat if one.process_index == jax.process_index()]


def free_memory(devices: Sequence[Any] | None = None) -> int | None:
    """Bytes free on `jax.Device`s, by default JAX's default one; None: not known.

    Devices that count no memory (CPU) have that of this machine.
    """
    statistics = [device.memory_stats() for device in devices or jax.local_devices()[:1]]
    if all(counts is not None and "bytes_limit" in counts for counts in statistics):
        return sum(counts["bytes_limit"] - counts.get("bytes_in_use", 0) for counts in statistics)
    found = [_available(), _left_in_container()]
    return min((number for number in found if number is not None), default=None)


def _available() -> int | None:
    """Bytes that this machine can give without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kib) * 1024
    except (OSError, StopIteration, ValueError):
        return None


def _left_in_container() -> int | None:
    """Bytes that this container may still take, files in its cache not counted."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        statistics = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = next(line.split()[1] for line in statistics if line.startswith("inactive_file "))
        return limit - used + int(cached)
    except (OSError, StopIteration, ValueError):  # "max": no limit
        return None
