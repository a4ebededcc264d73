"""The state of a training for those who watch it, and their signals to stop."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vkq_apps.terminal.wakeup import heard

__all__ = ["Log", "Window", "progress_bar", "stop_signals"]

_AHEAD = 2
"""Steps that may be under way: more would only delay stopping."""


class Window:
    """Losses since the last log entry, left on the device until then."""

    def __init__(self, first: int):
        self.first, self.began = first, time.perf_counter()
        self._losses: list[dict[str, jax.Array]] = []

    def add(self, losses: dict[str, jax.Array]) -> None:
        """Adds a step's, and waits for the step before the last."""
        self._losses.append(losses)
        if len(self._losses) > _AHEAD:
            self._losses[-1 - _AHEAD]["loss"].block_until_ready()

    def means(self) -> dict[str, float]:
        """Mean of each."""
        names = self._losses[0]
        return {name: round(float(np.mean([x[name] for x in self._losses])), 5) for name in names}


class Log:
    """Appends JSON lines to a file and prints them."""

    def __init__(self, file: Path):
        self._file, self._began = file, time.perf_counter()

    def __call__(self, **entry: Any) -> None:
        """Adds the seconds since the beginning and the peak of the device's memory, if known."""
        entry["seconds"] = round(time.perf_counter() - self._began, 1)
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            entry["peak_gib"] = round(stats["peak_bytes_in_use"] / 2**30, 2)
        line = json.dumps(entry)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of a signal to stop, so that a step is never cut in two."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        heard()
        received.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress_bar(steps: int, first: int) -> Iterator[Callable[[int], None]]:
    """Shows steps where somebody watches; elsewhere the log's lines are enough."""
    columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        if not progress.console.is_terminal:
            progress.stop()
            yield lambda number: None
            return
        task = progress.add_task("steps", total=steps, completed=first)
        yield lambda number: progress.update(task, completed=number)
