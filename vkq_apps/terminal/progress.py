"""Progress for people who watch, and lines for logs that nobody watches."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress", "resumable"]

_SECONDS = 10.0


@contextmanager
def progress(console: Console, what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows how far a long run is: a bar in a terminal, else a line every ten seconds.

    Gives a function of what is being done, how many more are done, and how many there are.
    """
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda stage, more, total: bar.update(
                task, description=stage, advance=more, total=total
            )
        return
    began = last = time.monotonic()
    done = 0

    def show(stage: str, more: int, total: int) -> None:
        nonlocal last, done
        done += more
        now = time.monotonic()
        if now - last >= _SECONDS or done == total:
            last = now
            left = (now - began) / max(done, 1) * (total - done)
            console.print(f"{stage}: {done} of {total} {what}, about {left:.0f} s left")

    yield show


@contextmanager
def resumable(console: Console, place: Path | None) -> Iterator[None]:
    """Says of a run that ends early what it leaves at `place` for `--resume`, if it leaves any."""
    try:
        yield
    except BaseException:  # Ctrl-C, too
        if place is not None and place.exists():
            console.print(f"{place} keeps what is done: --resume goes on from it", soft_wrap=True)
        raise
