"""Processes that compile kernels beside each other on one GPU.

jaxlib compiles one Mosaic GPU kernel at a time in a process, under the lock of its cache of kernels
(`CachedCompileAndInit` in jaxlib/mosaic/gpu/custom_call.cc): threads wait for each other.
"""

import contextlib
import multiprocessing
import os
import signal
from concurrent.futures import Executor, ProcessPoolExecutor

from vkq_apps.terminal.endings import closing_pool, end_with_parent

__all__ = ["process_pool", "take_memory_as_needed"]


def take_memory_as_needed() -> None:
    """In a process that shares its GPU with others, before JAX knows of the GPU."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def process_pool(size: int) -> contextlib.AbstractContextManager[Executor]:
    """A pool of `size` fresh processes; work that has not begun at the end is dropped."""
    spawn = multiprocessing.get_context("spawn")
    return closing_pool(ProcessPoolExecutor(size, spawn, initializer=_begin))


def _begin() -> None:
    take_memory_as_needed()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that uses the pool hears it
    end_with_parent()
