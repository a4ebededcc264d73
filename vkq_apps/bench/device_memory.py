"""What a device says of its memory, and how running out of it looks."""

import os

import jax

__all__ = ["claim_memory", "in_use", "is_out_of_memory", "limit", "peak"]


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


def limit() -> int:
    """Bytes that can be held: the device's own figure, or half of this machine's memory."""
    known = _statistic("bytes_limit")
    if known is not None:
        return known
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what an allocation that does not fit raises."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _statistic(name: str) -> int | None:
    statistics = jax.devices()[0].memory_stats()
    return None if statistics is None else statistics.get(name)
