"""Any exception in one line of bounded length."""

import logging
import os
import sys
from typing import Any

import typer

__all__ = [
    "LONGEST",
    "UsageError",
    "describe",
    "is_out_of_memory",
    "show_tracebacks",
    "tracebacks_shown",
]

LONGEST = 380
"""`vkq_jax.messages.LONGEST`, held equal by a test: its import would take a second."""

_TAIL = 130  # characters of a long description that are kept of its end, which says what to do

_logger = logging.getLogger("vkq")

# Typer brings its own copy of click's exceptions and exports only some of them by name.
UsageError: Any = typer.BadParameter.__mro__[1]


def show_tracebacks(wanted: bool) -> None:
    """Sets whether `describe` also logs where an exception came from."""
    _logger.setLevel(logging.DEBUG if wanted else logging.WARNING)


def tracebacks_shown() -> bool:
    """Whether `describe` logs where an exception came from."""
    return _logger.isEnabledFor(logging.DEBUG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what an allocation that does not fit raises, on a GPU or a CPU."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        "RESOURCE_EXHAUSTED" in text or "Out of memory allocating" in text
    )


def describe(error: BaseException) -> str:
    """One line for people, at most `LONGEST` printable characters."""
    if isinstance(error, typer.Abort) and error.__cause__ is not None:
        error = error.__cause__  # typer takes the end of a damaged file for that of a dialogue
    if tracebacks_shown():
        if not logging.getLogger().handlers:
            logging.basicConfig(format="%(message)s")
        _logger.debug("vkq: traceback", exc_info=error)
    return _shorten(_words(error))


def _words(error: BaseException) -> str:
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        command = "vkq" if context is None else context.command_path
        message = error.format_message()  # type: ignore[attr-defined]
        link = " See" if message.endswith("?") else "; see"
        return f"{message.rstrip('.')}{link} `{command} --help`"
    if is_out_of_memory(error):
        return f"out of memory: {error}"
    if isinstance(error, RuntimeError | AssertionError) and _has_no_device():
        platforms = os.environ.get("JAX_PLATFORMS")
        asked = f"JAX_PLATFORMS={platforms}" if platforms else "JAX_PLATFORMS unset"
        return (
            f"JAX finds no device with {asked}: expected cpu, or cuda on a machine with an NVIDIA "
            'GPU (pip install "vkq-jax[cuda13]")'
        )
    if isinstance(error, ModuleNotFoundError):
        return f'{error.name} is not installed: expected the extras of pip install "vkq-jax[all]"'
    if isinstance(error, OSError) and error.strerror:
        place = "reading or writing failed" if error.filename is None else error.filename
        return f"{place}: {error.strerror}"
    if isinstance(error, ValueError | NotImplementedError | OSError) and str(error):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; `vkq --traceback ...` shows where from"


def _has_no_device() -> bool:
    """Whether JAX cannot start; it says so in several ways, a bare assertion among them."""
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError):
        return True
    return False


def _shorten(text: str) -> str:
    """On one line, unprintable characters escaped, the middle left out where it is too long."""
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in " ".join(text.split())
    )
    if len(line) <= LONGEST:
        return line
    gap = " [...] "
    return line[: LONGEST - _TAIL - len(gap)] + gap + line[-_TAIL:]
