"""The memory that a device states, and a refusal of work that does not fit it."""

import os

import jax

from vkq_jax.byte_units import human_bytes

__all__ = [
    "DoesNotFit",
    "check_fits",
    "claim_memory",
    "in_use",
    "is_counted",
    "limit",
    "peak",
    "peaks",
]


class DoesNotFit(Exception):
    """A measurement needs more memory than the device has."""


def claim_memory() -> None:
    """Lets JAX have nearly all of a GPU; must come before anything runs on it."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; not both
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")


def in_use() -> int | None:
    """Bytes held now; None where the device does not count them (CPU)."""
    return _statistic("bytes_in_use")


def peak() -> int | None:
    """Most bytes ever held in this process (it never falls); None where they are not counted."""
    return _statistic("peak_bytes_in_use")


def peaks() -> list[int | None]:
    """`peak` of each device of this host, in the order of `jax.local_devices()`."""
    statistics = (device.memory_stats() or {} for device in jax.local_devices())
    return [of_device.get("peak_bytes_in_use") for of_device in statistics]


def limit() -> int:
    """Bytes that can be held: the device's own figure, or half of this machine's memory."""
    known = _statistic("bytes_limit")
    if known is not None:
        return known
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def is_counted() -> bool:
    """Whether the device counts its memory, and so refuses by itself what does not fit."""
    return _statistic("bytes_limit") is not None


def check_fits(num_bytes: int, subject: str) -> None:
    """Checks what a measurement needs at least, before anything is allocated.

    Args:
        num_bytes: needed.
        subject: what needs them, in the plural: "the keys of one sequence".

    Raises:
        DoesNotFit: the device has less memory.
    """
    if num_bytes > limit():
        raise DoesNotFit(
            f"{subject} take {human_bytes(num_bytes)}, and the device has {human_bytes(limit())}"
        )


def _statistic(name: str) -> int | None:
    statistics = jax.local_devices()[0].memory_stats()
    return None if statistics is None else statistics.get(name)
