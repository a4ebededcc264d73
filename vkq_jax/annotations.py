"""What an annotation says of a value: of a field, or of an argument."""

import enum
import numbers
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAliasType, TypeVar, Union

import numpy as np
from jaxtyping import AbstractArray

__all__ = ["alternatives", "describe", "holds", "is_array", "plain"]

_PLAIN = {int: "an integer", float: "a number", str: "a string", bool: "a bool"}


def alternatives(hint: Any) -> Iterable[Any]:
    """The parts of a union, of a name for one, or of the bound of a type variable."""
    if isinstance(hint, TypeAliasType):
        return alternatives(hint.__value__)
    if isinstance(hint, TypeVar) and hint.__bound__ is not None:
        return alternatives(hint.__bound__)
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    return [option for part in typing.get_args(hint) for option in alternatives(part)]


def is_array(hint: Any) -> bool:
    """Whether an annotation of one alternative is of an array with a dtype and axes."""
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def holds(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation of one alternative says."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if hint is None:
        return value is None
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple and isinstance(value, tuple):
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(items) == len(value) and all(
            any(holds(item, option) for option in alternatives(expected))
            for item, expected in zip(value, items, strict=True)
        )
    if origin is Callable:
        return callable(value)
    return isinstance(value, origin or hint)


def describe(hint: Any) -> str:
    """An annotation of one alternative in words."""
    if typing.get_origin(hint) is Literal:
        return f"one of {typing.get_args(hint)}"
    if is_array(hint):
        return f"{hint.dtype.__name__} [{', '.join(hint.dim_str.split())}]"
    if hint in (None, types.NoneType):
        return "None"
    if isinstance(hint, enum.EnumType):
        return " or ".join(map(str, hint))
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return _PLAIN.get(hint, f"a {hint.__name__}")
    return str(hint).replace("typing.", "")


def plain(value: Any) -> Any:
    """A scalar of NumPy as Python's, in tuples too; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is tuple and any(isinstance(item, np.generic | tuple) for item in value):
        items = tuple(map(plain, value))
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items
    return value
