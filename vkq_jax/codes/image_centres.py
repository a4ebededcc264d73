"""A few centroids of the tokens of one image and head."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.bits.exact_einsum import split_einsum

__all__ = ["image_centres", "nearest"]

_STEPS = 8


def image_centres(
    x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"], count: int
) -> Float[Array, "*lead M H"]:
    """k-means centroids of the valid tokens, from a start at tokens far from each other.

    Deterministic: the first centre is the mean, each further one the token farthest from those
    there are (Gonzalez 1985), then eight steps of Lloyd's algorithm. A centre without tokens stays
    where it is. Sums are in float32; tokens in bfloat16 are faster on a GPU.
    """
    if not x.shape[-2]:  # no token to start from
        return jnp.zeros((*x.shape[:-2], count, x.shape[-1]), jnp.float32)
    weight = valid.astype(jnp.float32)
    total = jnp.maximum(weight.sum(-1), 1.0)
    mean = (x.astype(jnp.float32) * weight[..., None]).sum(-2) / total[..., None]
    centres = jnp.zeros((*x.shape[:-2], count, x.shape[-1]), jnp.float32)
    centres = centres.at[..., 0, :].set(mean)
    distance = jnp.square(x.astype(jnp.float32) - mean[..., None, :]).sum(-1)
    far = jnp.where(valid, distance, -1.0)

    def add(i, state):
        centres, far = state
        token = jnp.argmax(far, axis=-1)
        new = jnp.take_along_axis(x, token[..., None, None], axis=-2, mode="promise_in_bounds")
        new = new.astype(jnp.float32)
        distance = jnp.square(x.astype(jnp.float32) - new).sum(-1)
        return centres.at[..., i, :].set(new[..., 0, :]), jnp.minimum(far, distance)

    centres, _ = jax.lax.fori_loop(1, count, add, (centres, far))

    def step(_, centres):
        # Tokens on the last axis: a sum along it is one pass over rows.
        number = jnp.arange(count, dtype=jnp.int32).reshape(*[1] * (x.ndim - 2), -1, 1)
        member = (nearest(x, centres)[..., None, :] == number) & valid[..., None, :]
        member = member.astype(jnp.float32)
        size = member.sum(-1)
        sums = split_einsum("...qv,...vh->...qh", member, x)
        moved = sums / jnp.maximum(size, 1.0)[..., None]
        return jnp.where(size[..., None] > 0, moved, centres)

    return jax.lax.fori_loop(0, _STEPS, step, centres)


def nearest(
    x: Float[Array, "*lead V H"], centres: Float[Array, "*lead M H"]
) -> Int32[Array, "*lead V"]:
    """Number of the centre that is nearest to each token."""
    if x.dtype == jnp.bfloat16:
        dot = split_einsum("...qh,...vh->...qv", centres, x).swapaxes(-1, -2)
    else:
        dot = jnp.einsum("...vh,...mh->...vm", x, centres, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.square(centres).sum(-1)[..., None, :] - 2.0 * dot
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)
