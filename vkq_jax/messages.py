"""Foreign values in error messages: bounded in length, and on one line whatever they hold."""

import dataclasses
import inspect
import os
import reprlib
from collections.abc import Collection
from enum import Enum
from typing import Any

import jax
import numpy as np

__all__ = ["LONGEST", "shorten", "show", "show_name", "show_path", "some"]

LONGEST = 380
"""Most characters of an error's message. With `vkq: error: ` before it the line stays below 400."""


class _Short(reprlib.Repr):
    """Plain values and settings by their `repr`, functions by name, everything else by its type.

    No array is fetched.
    """

    _PLAIN = (bool, float, complex, bytes, type, type(None), range, Enum, np.generic, os.PathLike)

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes out no more than 4,300 digits
            return f"an integer of {x.bit_length()} bits"

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, self._PLAIN):
            return super().repr_instance(x, level)
        if _is_settings(x):
            return shorten(" ".join(repr(x).split()), 90)
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            return f"{x.dtype} {list(x.shape)}"
        if inspect.isroutine(x):
            return f"the function {shorten(x.__qualname__.split('.')[-1], 40)}"
        return f"a {type(x).__name__}"


def _is_settings(x: Any) -> bool:
    """Whether it is a dataclass without arrays: those with arrays are pytrees."""
    is_instance = dataclasses.is_dataclass(x) and not isinstance(x, type)
    return is_instance and jax.tree_util.all_leaves([x])


_SHORT = _Short(
    maxlevel=2, maxdict=3, maxlist=4, maxtuple=4, maxset=4, maxstring=48, maxlong=24, maxother=48
)
_LONGEST_PATH = 80


def show(value: object) -> str:
    """A value as text, at most 100 characters long, however deep its nesting.

    Plain values, settings and containers of them by their `repr`, arrays by dtype and shape,
    functions by name, else the type.
    """
    return shorten(_SHORT.repr(value), 100)


def shorten(text: str, longest: int) -> str:
    """The beginning of a text that is longer."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def show_path(path: str | os.PathLike[str]) -> str:
    """A path, or the end of a long one; control characters are escaped."""
    text = os.fspath(path)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _LONGEST_PATH else f"...{text[-_LONGEST_PATH:]}"


def show_name(name: str, longest: int = 120) -> str:
    """A tensor's or file's name, or start and end of a long one; control characters are escaped."""
    name = name if name.isprintable() else repr(name)
    half = longest // 2 - 2
    return name if len(name) <= longest else f"{name[:half]}...{name[-half:]}"


def some(names: Collection[str], most: int = 2, longest: int = 80) -> str:
    """The first names, each of at most so many characters, and how many more there are."""
    shown = [show_name(name, longest) for name, _ in zip(names, range(most), strict=False)]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
