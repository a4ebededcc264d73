"""Whether a model's weights fit the memory that is free, before they are read."""

import math
import os
from pathlib import Path

import jax

from models.checkpoints.folder import Checkpoint
from models.checkpoints.location import find_folder
from models.messages import show_path

__all__ = ["check_memory", "free_memory", "weight_bytes"]

_CGROUP = Path("/sys/fs/cgroup")


def check_memory(folder: Path, needed: int) -> None:
    """Raises MemoryError where `needed` bytes of weights are more than the device has free."""
    free = free_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"{show_path(folder)}: the weights take {_gib(needed)} GiB, and {_gib(free)} GiB are "
            f"free on {jax.devices()[0].device_kind}: expected a device with more memory, a "
            "narrower dtype, or a smaller model"
        )


def weight_bytes(path: str | os.PathLike[str], itemsize: int = 2) -> int:
    """Bytes of all tensors in a checkpoint's files, `itemsize` bytes a number (2: bfloat16).

    Raises:
        FileNotFoundError, ValueError: as `models.load`.
    """
    with Checkpoint(find_folder(path)) as checkpoint:
        return itemsize * sum(math.prod(info.shape) for info in checkpoint.tensors.values())


def free_memory() -> int | None:
    """Bytes free on JAX's default device, on a CPU those of this machine; None: not known."""
    statistics = jax.devices()[0].memory_stats()
    if statistics is not None and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
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


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
