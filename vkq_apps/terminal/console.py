"""Messages of a run: tables and progress for people, one JSON object for programs."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.markup import escape

from vkq_apps.terminal.compiling import on_compiling

__all__ = ["log", "out", "print_json", "stage"]

# Answers, prompts and file names are shown as they are, [brackets] and :colons: included.
log = Console(stderr=True, highlight=False, markup=False, emoji=False)
out = Console(highlight=False, markup=False, emoji=False)
if not out.is_terminal:
    out.width = 124  # a file or pipe has no width of its own; tables need about this much


@contextmanager
def stage(
    description: str, compiling: Callable[[], str] | None = None
) -> Iterator[Callable[[str], None]]:
    """Says on stderr what is going on, with a spinner where a person is watching.

    Args:
        description: of the stage.
        compiling: gives what is said when a large program is compiled; None: nothing is.

    Yields:
        A function that shows text beside the description while the stage lasts.
    """
    if not log.is_terminal:
        log.print(f"{description} ...", soft_wrap=True)
        with _saying(compiling, lambda text: log.print(f"{text} ...", soft_wrap=True)):
            yield lambda text: None
        return
    shown = escape(description)  # a spinner's text is markup whatever the console is told
    with (
        log.status(f"{shown} ...") as status,
        _saying(compiling, lambda text: status.update(f"{shown}: {escape(text)} ...")),
    ):
        yield lambda text: status.update(f"{shown}: [bold]{escape(text)}")


def _saying(
    compiling: Callable[[], str] | None, say: Callable[[str], None]
) -> AbstractContextManager[None]:
    return nullcontext() if compiling is None else on_compiling(lambda: say(compiling()))


def print_json(record: dict[str, Any]) -> None:
    """The record as one JSON object on stdout, in ASCII where stdout takes no UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    print(json.dumps(record, ensure_ascii=encoding != "utf8"))
