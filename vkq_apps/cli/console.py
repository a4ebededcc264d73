"""Messages of a run: tables and progress for people, one JSON object for programs."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

__all__ = ["human_bytes", "log", "out", "print_json", "progress", "stage"]

SECONDS_BETWEEN_LINES = 10

# Answers, prompts and file names are shown as they are, [brackets] and :colons: included.
log = Console(stderr=True, highlight=False, markup=False, emoji=False)
out = Console(highlight=False, markup=False, emoji=False)
if not out.is_terminal:
    out.width = 120  # a file or pipe has no width of its own; tables need about this much


@contextmanager
def stage(description: str) -> Iterator[Callable[[str], None]]:
    """Says on stderr what is going on, with a spinner where a person is watching.

    Gives a function that shows text beside the description while the stage lasts.
    """
    if not log.is_terminal:
        log.print(f"{description} ...")
        yield lambda text: None
        return
    shown = escape(description)  # a spinner's text is markup whatever the console is told
    with log.status(f"{shown} ...") as status:
        yield lambda text: status.update(f"{shown}: [bold]{escape(text)}")


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Says on stderr how much is done: a bar where a person is watching, else lines now and then.

    Gives a function that is told how many more of the `total` steps are done.
    """
    if log.is_terminal:
        with Progress(console=log, transient=True) as bar:
            task = bar.add_task(escape(description), total=total)
            yield lambda steps: bar.advance(task, steps)
        return
    done, said = 0, time.monotonic()

    def advance(steps: int) -> None:
        nonlocal done, said
        done += steps
        if done == total or time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            log.print(f"{description}: {done} of {total}")

    log.print(f"{description}: 0 of {total}")
    yield advance


def print_json(record: dict[str, Any]) -> None:
    """The record as one JSON object on stdout, in ASCII where stdout takes no UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    print(json.dumps(record, ensure_ascii=encoding != "utf8"))


def human_bytes(count: int) -> str:
    """A byte count with a binary unit: 1536 -> '1.5 KiB'."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
