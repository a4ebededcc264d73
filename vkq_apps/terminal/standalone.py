"""Programs beside `vkq`: one command each, whose options are the fields of a dataclass."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from vkq_apps.terminal.command_line import App
from vkq_apps.terminal.program import run_program

__all__ = ["argument", "option", "run_standalone"]


def option(default: Any = dataclasses.MISSING, *, help: str, **typer_options: Any) -> Any:
    """A dataclass field that is an option of the command line; required without a default.

    Args:
        default: of the field.
        help: shown beside the option.
        **typer_options: further arguments of `typer.Option`.
    """
    info = typer.Option(help=help, **typer_options)
    return dataclasses.field(default=default, metadata={"option": info})


def argument(*, help: str) -> Any:
    """A dataclass field that is a required argument of the command line."""
    return dataclasses.field(metadata={"option": typer.Argument(help=help)})


def run_standalone[T](
    settings: type[T],
    run: Callable[[T], None],
    *,
    module: str,
    help: str | None,
    arguments: list[str] | None = None,
    overrides: Callable[[dict[str, Any]], dict[str, Any]] = lambda given: {},
) -> int:
    """Reads the options, calls `run`, and tells any failure in one line.

    Args:
        settings: a dataclass of fields made by `option` and `argument`.
        run: what the program does.
        module: `python -m MODULE` starts it.
        help: what `--help` says.
        arguments: of the command line; None: those of this process.
        overrides: other defaults, from the options that were given.

    Returns:
        The exit code, as of `vkq_apps.cli.main`.
    """

    def command(context: typer.Context, **values: Any) -> None:
        given = {
            name: value
            for name, value in values.items()
            # "COMMANDLINE": the option was written, and is not its default
            if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        }
        run(settings(**(values | overrides(given) | given)))

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("context", _POSITIONAL, annotation=typer.Context),
            *map(_parameter, *_fields(settings)),
        ]
    )
    app = App(add_completion=False, rich_markup_mode=None)
    app.command(help=help)(command)
    name = f"python -m {module}"
    group = typer.main.get_command(app)
    return run_program(module, lambda: group(arguments, prog_name=name, standalone_mode=False) or 0)


_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _fields(settings: type) -> tuple[list[dataclasses.Field], list[Any]]:
    fields, types = list(dataclasses.fields(settings)), get_type_hints(settings)
    return fields, [types[field.name] for field in fields]


def _parameter(field: dataclasses.Field, kind: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, field.metadata["option"]],
    )
