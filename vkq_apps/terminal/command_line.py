"""Typer as all programs here use it: each option once, and files and folders that have a name."""

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["App", "Command", "Group", "read_name"]


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
    """`typer.Typer` whose commands take each option once, and no empty text for a `Path`.

    Errors are told by `run_program`.
    """

    def __init__(self, **settings: Any):
        super().__init__(cls=Group, pretty_exceptions_enable=False, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """As `typer.Typer.command`."""
        register = super().command(name, **{"cls": Command, **settings})
        return lambda function: register(_reads_places(function))

    def callback(self, **settings: Any) -> Any:
        """As `typer.Typer.callback`."""
        register = super().callback(**settings)
        return lambda function: register(_reads_places(function))


def read_name(text: str) -> str:
    """The text that names a file or folder; the `parser` of an option that takes such a text.

    Raises:
        typer.BadParameter: an empty text, as `--out "$UNSET"` gives it, which pathlib takes for
            the current folder.
    """
    if not text:
        raise typer.BadParameter("expected the name of a file or folder, got an empty text")
    return text


def _read_place(text: str | Path) -> Path:
    """The `parser` of every `Path`; raises as `read_name`."""
    return Path(read_name(str(text)))


def _reads_places[F: Callable[..., Any]](function: F) -> F:
    """The function, its options and arguments that are a `Path`, or several, read as such."""
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is Annotated:
            kind, info, *_ = get_args(parameter.annotation)
            if _holds_path(kind):
                info.parser = _read_place
    return function


def _holds_path(kind: Any) -> bool:
    return kind is Path or any(map(_holds_path, get_args(kind)))
