"""Checks of values from outside: settings of any kind, and pytrees read from a file.

A class states what its fields may hold in their annotations, and what else has to hold in a method
`check`, which raises a ValueError. Nothing else is needed for a new class to be checked.
"""

import dataclasses
import functools
import operator
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import jaxtyped

from vkq_jax.annotations import alternatives, describe, holds, plain
from vkq_jax.array_types import Array
from vkq_jax.messages import show, show_path

__all__ = [
    "as_array",
    "as_items",
    "as_path",
    "check_alive",
    "check_dtype",
    "check_fields",
    "check_hashable",
    "check_readable",
    "check_size",
    "check_tree",
    "check_type",
    "check_untraced",
    "from_host",
    "is_traced",
    "static_layer",
    "whole_number",
]

_LARGEST = 2**63


def check_tree(tree: Any, name: str) -> None:
    """Checks a pytree of dataclasses, the innermost first.

    Fields hold what their annotations say, arrays have no value that is not finite, and `check`
    finds nothing wrong.

    Raises:
        ValueError: for the first part that cannot be, which is named by its path from `name` on.
    """
    if isinstance(tree, tuple):
        for number, item in enumerate(tree):
            check_tree(item, f"{name}.{number}")
    elif isinstance(tree, jax.Array) and jnp.issubdtype(tree.dtype, jnp.floating):
        finite = jnp.isfinite(tree)
        if not finite.all():
            raise ValueError(f"{name} must be finite, got {tree[~finite][0]}")
    elif dataclasses.is_dataclass(tree):
        parts = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        arrays = {part: value for part, value in parts.items() if isinstance(value, jax.Array)}
        for part, value in parts.items():
            if part not in arrays:
                check_tree(value, f"{name}.{part}")
        try:
            check_fields(tree)
            if hasattr(tree, "check"):
                tree.check()  # type: ignore[operator]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for part, value in arrays.items():  # after `check`, which may know more of its values
            check_tree(value, f"{name}.{part}")


def check_size(name: str, size: Any, most: int = 2**31 - 1) -> None:
    """Raises ValueError unless `size` is an integer from 1 to `most`."""
    number = whole_number(size)
    if number is None or number > most:
        raise ValueError(f"{name}: expected an integer from 1 to {most}, got {show(size)}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {show(size)}")


def check_type(name: str, value: Any, expected: type | tuple[type, ...], *, hint: str = "") -> None:
    """Raises ValueError unless `value` is an `expected`, whose arrays are all there.

    `hint` says where to get one.
    """
    if not isinstance(value, expected):
        classes = expected if isinstance(expected, tuple) else (expected,)
        kinds = " or ".join(dict.fromkeys(each.__name__ for each in classes))
        raise ValueError(f"{name}: expected {kinds}{hint and f' ({hint})'}, got {show(value)}")
    check_alive(name, value)


def check_hashable(name: str, settings: Any) -> None:
    """Raises ValueError for settings that cannot be hashed, as those of a compiled program are."""
    try:
        hash(settings)
    except TypeError as error:
        raise ValueError(
            f"{name} must be hashable, a @dataclass(frozen=True) of plain values and tuples, got "
            f"{show(settings)}"
        ) from error


def is_traced(tree: Any) -> bool:
    """Whether any array of a pytree is traced, so that its values are not known."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def check_untraced(name: str, tree: Any) -> None:
    """Raises ValueError where any array of a pytree is traced, whose values are needed."""
    if is_traced(tree):
        raise ValueError(
            f"{name}: expected arrays with values, got traced ones: call this outside of jit, vmap "
            "and grad"
        )


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path from outside; raises ValueError for anything else."""
    try:
        text = os.fsdecode(path)
    except TypeError as error:
        raise ValueError(f"path: expected text or a Path, got {show(path)}") from error
    if "\0" in text:
        raise ValueError(f"path: expected text without a null character, got {show(path)}")
    return Path(text)


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a file or folder that may not be read; one that is not there may.

    `os.path.isfile` and safetensors say of such a file that it does not exist.
    """
    try:
        os.stat(path)
        allowed = os.access(path, os.R_OK)
    except PermissionError:
        allowed = False
    except (OSError, ValueError):  # not there, or an impossible name: the caller's matter
        return
    if not allowed:
        raise ValueError(f"{show_path(path)} cannot be read: Permission denied")


def as_items(value: Any) -> tuple[Any, ...] | None:
    """What a list, an array or the like holds; None for anything else, text and objects among it.

    Arrays without axes claim to be iterable.
    """
    if isinstance(value, str | bytes | Mapping):
        return None
    try:
        return tuple(value)
    except TypeError:
        return None


def whole_number(value: Any) -> int | None:
    """The integer that an integer of Python, NumPy or JAX is; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # also for a traced value
        return None


def as_array(name: str, x: Any) -> Array:
    """An argument as an array of JAX.

    Raises:
        ValueError: it stands for no array, or for one of other things than numbers.
    """
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    check_alive(name, x)
    if isinstance(x, jax.ShapeDtypeStruct):  # JAX makes an array of its shape
        raise ValueError(f"{name}: expected an array of numbers, got {show(x)}")
    try:
        return jnp.asarray(x)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        # PyTorch's tensors with gradients, in bfloat16 or on a device are none that NumPy reads.
        hint = "; write x.detach().cpu().float()" if hasattr(x, "detach") else ""
        message = f"{name}: expected an array of numbers, got {show(x)}{hint}"
        raise ValueError(message) from error


def check_alive(name: str, tree: Any) -> None:
    """Raises ValueError for an array whose buffer is gone, in a pytree that is an argument."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise ValueError(
                f"{name}: expected arrays, got {leaf.dtype} {list(leaf.shape)} whose buffer was "
                "deleted, or donated to a jitted function"
            )


def from_host[T](tree: T) -> T:
    """A pytree whose arrays of NumPy, as `jax.device_get` leaves them, are JAX's again."""
    if not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)


def check_dtype(name: str, dtype: Any) -> None:
    """Raises ValueError unless a dtype is of floats of 16 bits or more that JAX holds."""
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = None
    floats = found is not None and jnp.issubdtype(found, jnp.floating) and found.itemsize > 1
    if not floats or jax.dtypes.canonicalize_dtype(found) != found:
        raise ValueError(
            f"{name}: expected bfloat16, float16 or float32 (float64 with jax_enable_x64), got "
            f"{show(dtype)}"
        )


def check_fields(value: Any) -> None:
    """Checks the fields of a dataclass against their annotations.

    Axes of one letter have one size throughout the fields. A bool does not count as a number.
    NumPy's scalars become Python's: equal settings have one `repr`, which digests are made of.
    Annotations with names that only type checkers know are skipped.

    Raises:
        ValueError: for the first field that holds something else.
    """
    # One frame for all arrays: jaxtyping gives every function its own axes.
    with jaxtyped("context"):
        for name, options in _annotations(type(value)).items():
            held = plain(getattr(value, name))
            if held is not getattr(value, name):
                object.__setattr__(value, name, held)
            if not any(holds(held, option) for option in options):
                expected = " or ".join(describe(option) for option in options)
                got = f"{show(held)}{_beside(value, name)}"
                raise ValueError(f"{name} must be {expected}, got {got}")
            if isinstance(held, int) and abs(held) > _LARGEST:  # no setting is as large
                raise ValueError(f"{name} must lie in [-2**63, 2**63], got {show(held)}")


def _beside(value: Any, name: str) -> str:
    """The arrays before a field, whose axes it shares."""
    names = [field.name for field in dataclasses.fields(value)]
    before: dict[str, Any] = {}
    for n in names[: names.index(name)]:
        held = getattr(value, n)
        several = isinstance(held, tuple)
        before |= {f"{n}.{i}": x for i, x in enumerate(held)} if several else {n: held}
    arrays = [f"{n} {show(x)}" for n, x in before.items() if isinstance(x, jax.Array)]
    return f" beside {', '.join(arrays)}" if arrays else ""


@functools.cache
def _annotations(cls: type) -> dict[str, tuple[Any, ...]]:
    """The values that each field may hold, one entry for each alternative."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:
        hints = {}
    return {
        field.name: tuple(alternatives(hints.get(field.name, Any)))
        for field in dataclasses.fields(cls)
    }


def static_layer(layer: Any, num_layers: int) -> int | None:
    """The layer's number where it is known, None in a traced loop; ValueError out of range."""
    if isinstance(layer, Tracer):
        return None
    number = whole_number(layer)
    if number is None or not 0 <= number < num_layers:
        raise ValueError(f"layer must be in [0, {num_layers}), got {show(layer)}")
    return number
