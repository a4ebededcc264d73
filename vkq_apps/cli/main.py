"""Entry point of `vkq`: bad input ends with one clear line on stderr and exit code 2."""

import os
import sys

import click
import typer

from vkq_apps.cli.ask import demo, generate
from vkq_apps.cli.evaluate import evaluate

__all__ = ["app", "main"]

app = typer.Typer(
    name="vkq",
    help="Multimodal LLMs in JAX with their visual KV cache in 1 bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(generate)
app.command("eval")(evaluate)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 for success, 2 for bad input, 130 when interrupted."""
    # transformers advises installing PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(arguments, standalone_mode=False)
    except click.exceptions.Exit as request:
        code = request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.Abort:
        code = 130
    except click.ClickException as error:
        code = _report(error.format_message())
    except (ValueError, NotImplementedError, OSError) as error:
        code = _report(str(error))
    sys.exit(code or 0)


def _report(message: str) -> int:
    print(f"vkq: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
