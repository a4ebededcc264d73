"""Frozen dataclasses that are JAX pytrees: the only kind of state in this library."""

import dataclasses
from typing import Any, dataclass_transform

import jax
from jax.tree_util import GetAttrKey

from vkq_jax.array_types import Array, Int32
from vkq_jax.display import describe, table

__all__ = ["frozen_pytree", "nbytes", "static_field", "take_layer"]


def static_field(**kwargs: Any) -> Any:
    """A field that is part of the pytree's structure (hashable, compared by value), not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def frozen_pytree[T](cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass registered as a pytree, with key paths for its leaves.

    Unlike `jax.tree_util.register_dataclass`, unflattening does not call `__init__`: JAX puts all
    sorts of objects in place of leaves (axis numbers, shapes, None), which no check of a field's
    type or value should meet.
    """
    # eq=False: comparing dataclasses of arrays field by field has no single truth value.
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    if cls.__repr__ is object.__repr__:
        # The arrays of a cache would fill a thousand lines.
        cls.__repr__ = describe  # type: ignore[assignment]
        cls._repr_html_ = table  # type: ignore[attr-defined]
    cls.__array__ = _no_array  # type: ignore[attr-defined]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    static = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten(tree):
        return tuple(getattr(tree, n) for n in data), tuple(getattr(tree, n) for n in static)

    def flatten_with_keys(tree):
        leaves, structure = flatten(tree)
        return tuple(zip(map(GetAttrKey, data), leaves, strict=True)), structure

    def unflatten(structure, leaves):
        tree = object.__new__(cls)
        for name, value in zip((*data, *static), (*leaves, *structure), strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _no_array(tree: Any, *_: Any, **__: Any) -> Any:
    """Refuses `np.asarray(tree)`, of which NumPy would make an array of one object."""
    if hasattr(tree, "dequantize"):
        hint = "its method dequantize() gives the values"
    else:
        hint = f"its fields are {', '.join(f.name for f in dataclasses.fields(tree))}"
    raise TypeError(f"expected an array, got the pytree {type(tree).__name__}: {hint}")


def take_layer[T](stacked: T, index: Int32[Array, ""] | int) -> T:
    """One layer of a pytree of arrays [L, ...]; `index` may be traced."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=0, keepdims=False), stacked
    )


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree; shapes suffice, so tracers are welcome."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
