"""Whether the parts of a pytree fit together, by their shapes and dtypes alone.

Pytrees are unflattened without any check, since JAX puts all sorts of objects in place of their
leaves. Those that are put together by hand are therefore checked where a function takes them. Equal
structures are checked once, and nothing of it is left in a compiled program.
"""

import dataclasses
import functools
from typing import Any

import jax

from vkq_jax.messages import show
from vkq_jax.validation import check_fields

__all__ = ["check_structure"]


def check_structure(name: str, tree: Any, *, abstract: bool = False) -> None:
    """Checks a pytree of dataclasses that is an argument.

    Fields hold what their annotations say, and `check_shapes`, a method that a class may have,
    finds nothing wrong.

    Args:
        name: of the argument.
        tree: of arrays, traced or not, or of NumPy's arrays.
        abstract: shapes may stand in place of arrays.

    Raises:
        ValueError: for the first part that does not fit, which is named by its path from `name` on.
    """
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) == 1 and leaves[0] is tree:  # settings, or one array
        return
    try:
        shapes = tuple(_shape_and_dtype(leaf, abstract) for leaf in leaves)
    except (AttributeError, TypeError):
        raise ValueError(f"{name}{_other_than_array(tree, abstract)}") from None
    try:
        _check(structure, shapes)
    except ValueError as error:
        raise ValueError(f"{name}{error}") from error


def _shape_and_dtype(leaf: Any, abstract: bool) -> tuple[tuple[int, ...], Any]:
    if not abstract and isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError
    return tuple(leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype)


def _other_than_array(tree: Any, abstract: bool) -> str:
    """The first leaf that is no array, with its path."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        try:
            _shape_and_dtype(leaf, abstract)
        except (AttributeError, TypeError):
            return f"{jax.tree_util.keystr(path)}: expected an array, got {show(leaf)}"
    raise AssertionError


@functools.lru_cache(maxsize=512)
def _check(structure: Any, shapes: tuple[tuple[tuple[int, ...], Any], ...]) -> None:
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    jax.eval_shape(functools.partial(_check_parts, path=""), structure.unflatten(arrays))


def _check_parts(tree: Any, path: str) -> None:
    """Checks the innermost dataclasses first."""
    if isinstance(tree, tuple):
        for number, item in enumerate(tree):
            _check_parts(item, f"{path}.{number}")
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            _check_parts(getattr(tree, field.name), f"{path}.{field.name}")
        try:
            check_fields(tree)
            if hasattr(tree, "check_shapes"):
                tree.check_shapes()  # type: ignore[operator]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
