"""Exceptions of other libraries, turned into one clear error."""

import contextlib
from collections.abc import Iterator

__all__ = ["named"]

_LONGEST = 180


@contextlib.contextmanager
def named(subject: str) -> Iterator[None]:
    """Raises a ValueError that starts with `subject` for any exception of the block.

    For calls into Pillow, transformers, tokenizers and jinja2: on bad files these fail with
    exceptions of many types. Panics of tokenizers are not even an `Exception`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(f"{subject}: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    """The message on one line, cut to a readable length; the type where that says more."""
    text = " ".join(str(error).split())
    if not text or not isinstance(error, (ValueError, OSError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
