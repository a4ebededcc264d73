"""One run of `vkq`: streams, interrupts, and any failure told in one line."""

import io
import os
import sys
from typing import Any

from vkq_apps.terminal.endings import at_failure
from vkq_apps.terminal.interrupts import hear_interrupts

__all__ = ["run_program"]


def run_program(arguments: list[str] | None) -> int:
    """Runs the command line; returns the exit code that `main` documents."""
    # transformers advises installing PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with hear_interrupts() as interrupted:
        code, failure = 0, None
        try:
            code = _run(arguments)
        except BaseException as error:
            failure = error
        if interrupted.is_set():
            _say("vkq: interrupted")
            code = 130
        elif failure is not None:
            code = _describe(failure)
    if code:
        for end in at_failure:
            end(code)
    return code


def _run(arguments: list[str] | None) -> int:
    if sys.stderr is None:  # closed by the caller, as stdout below
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # stays open until the process ends
    if sys.stdout is None:
        raise OSError("standard output is closed: nothing could be answered")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without the letters of an answer shows their numbers.
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except FileNotFoundError as error:  # libraries fail on it in ways that do not say so
        raise OSError("the current folder was deleted: change to another one") from error
    from vkq_apps.cli.app import run

    code = run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return 1
        raise OSError(f"standard output cannot be written: {error.strerror}") from error
    return code


def _describe(error: BaseException) -> int:
    """Says what went wrong, if anybody has to hear of it; returns the exit code."""
    if isinstance(error, SystemExit):  # of a library that ends the process by itself
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        _discard(sys.stdout)
        return 1
    from vkq_apps.terminal.errors import describe

    _say(f"vkq: error: {describe(error)}")
    return 2


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        _discard(sys.stderr)


def _discard(stream: Any) -> None:
    """Sends what is left in the buffer nowhere: Python flushes it once more when it ends."""
    if isinstance(stream, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
