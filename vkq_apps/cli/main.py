"""Entry point of `vkq`: bad input ends with one clear line on stderr and exit code 2."""

import os
import sys

import typer

from vkq_apps.cli.ask import demo, generate
from vkq_apps.cli.bench import bench
from vkq_apps.cli.calibrate import calibrate
from vkq_apps.cli.evaluate import evaluate
from vkq_apps.cli.inspect import inspect

__all__ = ["app", "main"]

app = typer.Typer(
    name="vkq",
    help="Multimodal LLMs in JAX with their visual KV cache in 1 bit.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(generate)
app.command()(inspect)
app.command()(calibrate)
app.command("eval")(evaluate)
app.add_typer(bench, name="bench")

# Typer brings its own copy of click's exceptions and exports only some of them by name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 for success, 2 for bad input, 130 when interrupted."""
    # transformers advises installing PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(arguments, standalone_mode=False)
    except typer.Exit as request:
        code = request.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except (_UsageError, ValueError, NotImplementedError, OSError) as error:
        describe = getattr(error, "format_message", error.__str__)
        print(f"vkq: error: {' '.join(describe().split())}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
