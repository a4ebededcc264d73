"""The commands of `vkq`, each imported when it is called: `vkq --help` needs none of them."""

import importlib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from vkq_apps.cli.compilation_cache import use_compilation_cache, use_default_cache
from vkq_apps.cli.examples import add_examples
from vkq_apps.terminal.command_line import App, Command, Group
from vkq_apps.terminal.errors import UsageError, show_tracebacks

__all__ = ["COMMANDS", "load_command", "run"]


class Place(NamedTuple):
    """Where a command is defined, and what the list of commands says of it.

    Attributes:
        module, attribute: a function, or a `typer.Typer` with commands of its own.
        summary: short enough for one line of a terminal of 80 columns.
    """

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "demo": Place("vkq_apps.cli.ask", "demo", "A real model reads a receipt in 16 bits and in 1."),
    "generate": Place("vkq_apps.cli.ask", "generate", "Answer a question about your pictures."),
    "chat": Place("vkq_apps.cli.chat", "chat", "Talk about pictures, turn by turn."),
    "inspect": Place("vkq_apps.cli.inspect", "inspect", "Plot the visual cache of one prompt."),
    "calibrate": Place("vkq_apps.cli.calibrate", "calibrate", "Fit the codes to your model, once."),
    "calibrate-scores": Place(
        "vkq_apps.cli.calibrate_scores",
        "calibrate_scores",
        "Make a static score map from sample prompts.",
    ),
    "eval": Place("vkq_apps.cli.evaluate", "evaluate", "Measure what coding does to answers."),
    "bench": Place("vkq_apps.cli.bench", "bench", "Measure time and memory."),
}

_app = App(
    name="vkq",
    help="Multimodal LLMs in JAX with their visual KV cache in 1 bit.",
    epilog="`vkq COMMAND --help` shows the options of a command, and examples.",
)


def load_command(name: str) -> Command | Group:
    """A command of COMMANDS with its options and its help, its module imported."""
    place = COMMANDS[name]
    found = getattr(importlib.import_module(place.module), place.attribute)
    if isinstance(found, typer.Typer):
        command = typer.main.get_group(found)
    else:
        single = App(add_completion=False)
        single.command(name)(found)
        command = typer.main.get_command(single)
    assert isinstance(command, Command | Group)
    add_examples(name, command)
    return command


class _OnDemand(Command):
    """A command that is known by its name and summary until it is called."""

    def __init__(self, name: str, place: Place):
        super().__init__(name, help=place.summary)
        self._name = name

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        command = load_command(self._name)
        try:
            return command.make_context(info_name, args, *rest, **extra)
        except UsageError as error:
            if error.ctx is None:  # a value that is missing is found before there is a context
                error.ctx = typer.Context(command, extra.get("parent"), info_name)
            raise


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # here: `vkq --help` should not wait for it

        versions = (f"{name} {version(name)}" for name in ("vkq-jax", "jax"))
        print(", ".join(versions))
        raise typer.Exit


@_app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
    compilation_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep compiled programs here, which later runs then do not compile again, "
            "instead of in the user's cache; goes before the command.",
        ),
    ] = None,
) -> None:
    show_tracebacks(traceback)
    if compilation_cache is not None:
        use_compilation_cache(compilation_cache)
    elif context.invoked_subcommand not in (None, "bench"):  # that measures compiling, too
        use_default_cache()
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: list[str] | None) -> int:
    """Runs the command line; returns its exit code. Raises what the command raises."""
    group = typer.main.get_command(_app)
    assert isinstance(group, Group)
    for name, place in COMMANDS.items():
        group.add_command(_OnDemand(name, place))
    return group(arguments, prog_name="vkq", standalone_mode=False) or 0
