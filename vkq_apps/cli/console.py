"""Messages of a run: tables and progress for people, one JSON object for programs."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

__all__ = ["log", "out", "print_json", "stage"]

# Answers, prompts and file names are shown as they are, [brackets] and :colons: included.
log = Console(stderr=True, highlight=False, markup=False, emoji=False)
out = Console(highlight=False, markup=False, emoji=False)
if not out.is_terminal:
    out.width = 124  # a file or pipe has no width of its own; tables need about this much


@contextmanager
def stage(description: str) -> Iterator[Callable[[str], None]]:
    """Says on stderr what is going on, with a spinner where a person is watching.

    Gives a function that shows text beside the description while the stage lasts.
    """
    if not log.is_terminal:
        log.print(f"{description} ...", soft_wrap=True)
        yield lambda text: None
        return
    shown = escape(description)  # a spinner's text is markup whatever the console is told
    with log.status(f"{shown} ...") as status:
        yield lambda text: status.update(f"{shown}: [bold]{escape(text)}")


def print_json(record: dict[str, Any]) -> None:
    """The record as one JSON object on stdout, in ASCII where stdout takes no UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    print(json.dumps(record, ensure_ascii=encoding != "utf8"))
