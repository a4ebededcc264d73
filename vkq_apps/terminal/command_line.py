"""Typer as all programs here use it: each option once, and files and folders that have a name."""

from collections import Counter
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["App", "Command", "Group", "read_name", "read_place"]


class _OptionsOnce:
    """Refuses an option that is given twice, of which click would take the last without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))  # type: ignore[attr-defined]
        for parameter, times in Counter(given).items():
            if times > 1 and not parameter.multiple:
                message = f"expected once, got {times} times"
                raise typer.BadParameter(message, ctx=ctx, param=parameter)
        return super().parse_args(ctx, args)  # type: ignore[misc]


class Command(_OptionsOnce, TyperCommand):
    """A command of an `App`."""


class Group(_OptionsOnce, TyperGroup):
    """The commands of an `App`."""


class App(typer.Typer):
    """`typer.Typer` whose commands take each option once; errors are told by `run_program`."""

    def __init__(self, **settings: Any):
        super().__init__(cls=Group, pretty_exceptions_enable=False, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """As `typer.Typer.command`."""
        return super().command(name, **{"cls": Command, **settings})


def read_name(text: str) -> str:
    """What names a file or folder: the `parser` of such an option or argument, beside its metavar.

    Raises:
        typer.BadParameter: an empty text, as `--out "$UNSET"` gives it, which pathlib takes for
            the current folder.
    """
    if not text:
        raise typer.BadParameter("expected the name of a file or folder, got an empty text")
    return text


def read_place(text: str | Path) -> Path:
    """The `parser` of an option or argument that is a `Path`; raises as `read_name`."""
    return Path(read_name(str(text)))
