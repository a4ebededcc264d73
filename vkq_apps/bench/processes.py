"""Processes that compile kernels beside each other on one GPU.

jaxlib compiles one Mosaic GPU kernel at a time in a process, under the lock of its cache of kernels
(`CachedCompileAndInit` in jaxlib/mosaic/gpu/custom_call.cc): threads wait for each other.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

__all__ = ["process_pool", "take_memory_as_needed"]


def take_memory_as_needed() -> None:
    """In a process that shares its GPU with others, before JAX knows of the GPU."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


@contextlib.contextmanager
def process_pool(size: int) -> Iterator[Executor]:
    """A pool of `size` fresh processes; work that has not begun at the end is dropped."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(size, spawn, initializer=take_memory_as_needed)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
