"""Arguments of public functions, checked against the annotations that say what they are."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import jaxtyped

from vkq_jax.annotations import alternatives, describe, holds, is_array, plain
from vkq_jax.array_types import Int32
from vkq_jax.messages import show
from vkq_jax.structure import check_structure
from vkq_jax.validation import as_array, check_alive, from_host, whole_number

__all__ = ["checked", "checked_shapes"]

_LARGEST = 2**31 - 1  # what an index of JAX holds


def checked[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are what its annotations say, or one ValueError that names them.

    Dtypes and numbers of axes are checked; sizes, and what else has to hold, are the function's own
    matter. NumPy's arrays and lists of numbers become arrays of JAX, scalars Python's.
    """
    return _checked(function, abstract=False)


def checked_shapes[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """As `checked`; shapes (`jax.ShapeDtypeStruct`) may stand in place of a pytree's arrays."""
    return _checked(function, abstract=True)


def _checked[**P, R](function: Callable[P, R], *, abstract: bool) -> Callable[P, R]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # too few arguments, or too many: Python's own words say it best
            return function(*args, **kwargs)
        for name, value in bound.arguments.items():
            settled = _settle(name, value, _options(function).get(name))
            if dataclasses.is_dataclass(settled):
                check_structure(name, settled, abstract=abstract)
            bound.arguments[name] = settled
        return function(*bound.args, **bound.kwargs)

    return check_and_call


@functools.cache
def _options(function: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """What each argument may be, one entry for each alternative."""
    own = {variable.__name__: variable for variable in getattr(function, "__type_params__", ())}
    hints = typing.get_type_hints(function, localns=own, include_extras=True)
    return {name: tuple(alternatives(hint)) for name, hint in hints.items()}


def _settle(name: str, value: Any, options: Sequence[Any] | None) -> Any:
    """The value as the function takes it."""
    if options is None:
        return value
    arrays = [option for option in options if is_array(option)]
    value = _as_arrays(name, value, arrays) if arrays else _as_plain(value, options)
    # One frame each: jaxtyping would hold one letter to one size for all.
    with jaxtyped("context"):
        if not any(holds(value, option) for option in options):
            expected = " or ".join(map(describe, options))
            expected += ", static under jit" * (isinstance(value, Tracer) and not arrays)
            raise ValueError(f"{name} must be {expected}, got {show(value)}")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST}, got {show(value)}")
    check_alive(name, value)
    return from_host(value) if dataclasses.is_dataclass(value) else value


def _as_arrays(name: str, value: Any, options: Sequence[Any]) -> Any:
    """NumPy's arrays and lists of numbers as arrays of JAX, their integers in 32 bits."""
    integers = options[0].dtype is Int32
    if integers and isinstance(value, jax.Array) and value.dtype == jnp.int64:
        return value.astype(jnp.int32)  # of a loop, with jax_enable_x64
    if not isinstance(value, np.ndarray | np.generic | list):
        return value
    if integers and isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        if not -_LARGEST <= int(value.min()) <= int(value.max()) <= _LARGEST:
            raise ValueError(f"{name} must lie in [-{_LARGEST}, {_LARGEST}], got {value.max()}")
        value = value.astype(np.int32)
    return as_array(name, value)


def _as_plain(value: Any, options: Sequence[Any]) -> Any:
    """Scalars of NumPy and JAX as Python's, lists as tuples."""
    number = whole_number(value)
    if number is not None:
        return float(number) if float in options and abs(number) < 2**53 else number
    if isinstance(value, list) and any(typing.get_origin(option) is tuple for option in options):
        value = tuple(value)
    return plain(value)
