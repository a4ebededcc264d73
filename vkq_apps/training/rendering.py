"""Processes that render chunks into memory shared with the trainer.

The processes are spawned, so that they inherit nothing of JAX, and end with the trainer however it
ends; Ctrl-C is the trainer's matter. Files in memory (/dev/shm, else a temporary folder) hold the
slots that they fill in turn; what a killed trainer leaves of them the next one removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from vkq_apps.training.chunks import ChunkArrays, fill_chunk, shapes
from vkq_apps.training.encoding import RECIPE, Encoding
from vkq_apps.training.pictures import KINDS

__all__ = ["Renderers"]


@dataclasses.dataclass(frozen=True)
class _Job:
    """Everything that a rendering process needs to know; picklable."""

    folder: str
    slots: int
    chunk_size: int
    seed: str
    encoding: Encoding
    shares: Mapping[str, float]


class Renderers:
    """A pool of rendering processes; a context manager that ends them.

    Attributes:
        rendered: pictures rendered so far.
    """

    def __init__(
        self,
        workers: int,
        *,
        chunk_size: int,
        slots: int,
        seed: str,
        difficulty: float,
        encoding: Encoding = RECIPE,
        shares: Mapping[str, float] = KINDS,
    ):
        """Starts `workers` processes that fill `slots` chunks over and over."""
        # Here, since it imports JAX, which the processes import this module without.
        from vkq_jax.files.atomic_write import part_folder

        needed = slots * sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize
            for shape, dtype in shapes(chunk_size, encoding.row_length).values()
        )
        self._files = contextlib.ExitStack()
        memory = _memory_folder(needed)
        folder = self._files.enter_context(part_folder(memory / "vkq-chunks"))
        job = _Job(str(folder), slots, chunk_size, seed, encoding, dict(shares))
        self._slots = _map_slots(job, "w+")
        self._chunk_size = chunk_size
        self.rendered = 0
        context = multiprocessing.get_context("spawn")
        self._free, self._ready = context.Queue(), context.Queue()
        self._difficulty = context.Value("d", difficulty)
        for slot in range(slots):
            self._free.put(slot)
        self._processes = [
            context.Process(
                target=_work,
                args=(job, worker, self._free, self._ready, self._difficulty),
                daemon=True,
            )
            for worker in range(workers)
        ]
        # A blocked signal stays blocked in the processes: they hear no Ctrl-C, not even in imports.
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for process in self._processes:
            process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for channel in (self._free, self._ready):
            channel.cancel_join_thread()
            channel.close()
        self._slots.clear()
        self._files.close()

    def set_difficulty(self, difficulty: float) -> None:
        """Difficulty of the chunks begun from now on."""
        self._difficulty.value = difficulty

    def take[T](self, use: Callable[[ChunkArrays], T], timeout: float) -> T | None:
        """`use(chunk)` of the next finished chunk, or None if there is none in time.

        The chunk's memory is filled anew once `use` has returned.
        """
        try:
            slot = self._ready.get(timeout=timeout)
        except queue.Empty:
            for process in self._processes:
                if not process.is_alive():
                    raise ChildProcessError(
                        f"a rendering process ended with code {process.exitcode} (-9: killed, as "
                        "for want of memory); give fewer --workers, and --resume"
                    ) from None
            return None
        result = use(self._slots[slot])
        self.rendered += self._chunk_size
        self._free.put(slot)
        return result


def _memory_folder(needed: int) -> Path:
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > 1.25 * needed:
        return shared
    return Path(tempfile.gettempdir())


def _map_slots(job: _Job, mode: Any) -> list[ChunkArrays]:
    arrays = {
        name: np.memmap(Path(job.folder) / name, dtype, mode, shape=(job.slots, *shape))
        for name, (shape, dtype) in shapes(job.chunk_size, job.encoding.row_length).items()
    }
    return [
        ChunkArrays(**{name: array[slot] for name, array in arrays.items()})
        for slot in range(job.slots)
    ]


def _work(job: _Job, worker: int, free: Any, ready: Any, difficulty: Any) -> None:
    os.nice(5)  # the trainer's own process goes first
    slots = _map_slots(job, "r+")
    parent = multiprocessing.parent_process()
    number = 0
    while parent is not None and parent.is_alive():
        try:
            slot = free.get(timeout=2)
        except queue.Empty:
            continue
        seed = f"{job.seed}/{worker}/{number}"
        fill_chunk(slots[slot], seed, difficulty.value, job.encoding, job.shares)
        number += 1
        ready.put(slot)
