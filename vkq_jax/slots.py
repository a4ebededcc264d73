"""Which slots of a bank are taken, or seen."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Int32

__all__ = ["filled", "visible"]


def visible(
    start: Int32[Array, "*#lead"] | None, stop: Int32[Array, "*#lead"], capacity: int
) -> Bool[Array, "*#lead n"]:
    """True for slots [start, stop) of `capacity`; from the first one on where there is no start."""
    seen = filled(stop, capacity)
    return seen if start is None else seen & ~filled(start, capacity)


def filled(length: Int32[Array, "*lead"], capacity: int) -> Bool[Array, "*lead n"]:
    """True for the first `length` of `capacity` slots."""
    shape = (*length.shape, capacity)
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1) < length[..., None]
