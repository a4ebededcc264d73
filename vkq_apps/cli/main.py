"""Entry point of `vkq`. It imports nothing by itself, so that Ctrl-C is heard in every import."""

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits, without a traceback whatever happens.

    Exit codes:
        0: success.
        1: a measurement or a check failed, or nobody reads the output any more (`vkq ... | head`).
        2: an error, described by one line on stderr.
        130: interrupted by Ctrl-C.
    """
    try:
        from vkq_apps.terminal.program import end_with, run_program

        end_with(run_program("vkq", lambda: _run(arguments)))
    except ModuleNotFoundError as error:  # of the core alone not even typer is there
        extras = 'expected the extras of pip install "vkq-jax[all]"'
        print(f"vkq: {error.name} is not installed: {extras}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before `run_program` listens
        print("vkq: interrupted", file=sys.stderr)
        sys.exit(130)


def _run(arguments: list[str] | None) -> int:
    from vkq_apps.cli.app import run

    return run(arguments)


if __name__ == "__main__":
    main()
