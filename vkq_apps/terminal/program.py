"""One run of a program: streams, interrupts, and any failure told in one line."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from vkq_apps.terminal.endings import at_failure
from vkq_apps.terminal.interrupts import hear_interrupts
from vkq_apps.terminal.wakeup import watch_interrupts

__all__ = ["end_with", "run_module", "run_program"]

_COLUMNS = range(40, 1001)
_is_running = False


def run_program(name: str, run: Callable[[], int]) -> int:
    """Calls `run`; returns the exit code that `vkq_apps.cli.main` documents.

    Args:
        name: of the program, before each line about its end.
        run: does the work, imports included, and returns an exit code.
    """
    # transformers advises installing PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    global _is_running
    if _is_running:  # `main` of a module that `run_module` runs: the end is told once
        return run()
    with watch_interrupts(f"{name}: interrupted"), hear_interrupts() as interrupted:
        code, failure = 0, None
        try:
            _is_running = True
            code = _run(run)
        except BaseException as error:
            failure = error
        finally:
            _is_running = False
        if interrupted.is_set():
            _say(f"{name}: interrupted")
            code = 130
        elif failure is not None:
            code = _describe(name, failure)
    if code:
        for end in at_failure:
            end(code)
    return code


def run_module(name: str) -> NoReturn:
    """Calls `main` of a module and exits with its code; Ctrl-C is heard in its imports, too."""
    try:
        code = run_program(name, lambda: importlib.import_module(name).main())
    except KeyboardInterrupt:  # pressed again while the first one was told
        code = 130
    end_with(code)


def end_with(code: int) -> NoReturn:
    """Ends the process; an interrupted one without its threads, which may compile for a minute."""
    if code == 130:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(130)
    sys.exit(code)


def _run(run: Callable[[], int]) -> int:
    if sys.stderr is None:  # closed by the caller, as stdout below
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # stays open until the process ends
    if sys.stdout is None:
        raise OSError("standard output is closed: nothing could be answered")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without the letters of an answer shows their numbers.
            stream.reconfigure(errors="backslashreplace")
    _settle_width()
    try:
        os.getcwd()
    except FileNotFoundError as error:  # libraries fail on it in ways that do not say so
        raise OSError("the current folder was deleted: change to another one") from error
    code = run()
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return 1
        raise OSError(f"standard output cannot be written: {error.strerror}") from error
    return code


def _settle_width() -> None:
    """Forgets a width of the environment at which tables lose their words, or fill the memory."""
    columns = os.environ.get("COLUMNS", "")
    if columns and not (columns.isdecimal() and int(columns[:9]) in _COLUMNS):
        del os.environ["COLUMNS"]


def _describe(name: str, error: BaseException) -> int:
    """Says what went wrong, if anybody has to hear of it; returns the exit code."""
    if isinstance(error, SystemExit):  # of a library that ends the process by itself
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        _discard(sys.stdout)
        return 1
    from vkq_apps.terminal.errors import describe

    _say(f"{name}: error: {describe(error)}")
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
