"""Frozen dataclasses that are JAX pytrees: the only kind of state in this library."""

import dataclasses
from typing import Any, dataclass_transform

import jax

__all__ = ["frozen_pytree", "static_field"]


def static_field(**kwargs: Any) -> Any:
    """A field that is part of the pytree's structure (hashable, compared by value), not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def frozen_pytree[T](cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass registered as a pytree, with key paths for its leaves."""
    # eq=False: comparing dataclasses of arrays field by field has no single truth value.
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))
