"""A few centroids of the tokens of one image and head."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.bits.exact_einsum import large_einsum, split_einsum

__all__ = ["STEPS", "far_centres", "image_centres", "in_units", "mean_token", "nearest"]

STEPS = 8  # of Lloyd's algorithm
_FEW = 4


def image_centres(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    count: int,
    unit: Float[Array, "*lead H"] | None = None,
) -> Float[Array, "*lead M H"]:
    """k-means centroids of the valid tokens, from a start at tokens far from each other.

    Deterministic: the first centre is the mean, each further one the token farthest from those
    there are (Gonzalez 1985), then eight steps of Lloyd's algorithm. A centre without tokens stays
    where it is. Sums are in float32; tokens in bfloat16 are faster on a GPU.

    Args:
        x: tokens, finite, 0 where they are not valid.
        valid: which ones there are.
        count: M.
        unit: of each channel: centroids of x / unit, float32. None: 1.
    """
    if not x.shape[-2]:  # no token to start from
        return jnp.zeros((*x.shape[:-2], count, x.shape[-1]), jnp.float32)
    centres = far_centres(x, valid, mean_token(x, valid), count, unit)

    def step(_, centres):
        # Tokens on the last axis: a sum along it is one pass over rows.
        number = jnp.arange(count, dtype=jnp.int32).reshape(*[1] * (x.ndim - 2), -1, 1)
        member = (nearest(x, centres, unit)[..., None, :] == number) & valid[..., None, :]
        size = member.sum(-1)[..., None]
        sums = split_einsum("...qv,...vh->...qh", member, x)
        moved = in_units(sums, unit) / jnp.maximum(size, 1).astype(jnp.float32)
        return jnp.where(size > 0, moved, centres)

    return jax.lax.fori_loop(0, STEPS, step, centres)


def far_centres(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    mean: Float[Array, "*lead H"],
    count: int,
    unit: Float[Array, "*lead H"] | None = None,
) -> Float[Array, "*lead M H"]:
    """Where `image_centres` starts: the mean, and tokens far from each other, in units."""
    mean = in_units(mean[..., None, :], unit)
    far = jnp.where(valid, _squared_distance(x, mean, unit), -1.0)

    def add(far, _):
        token = jnp.argmax(far, axis=-1)
        new = jnp.take_along_axis(x, token[..., None, None], axis=-2, mode="promise_in_bounds")
        new = in_units(new, unit)
        return jnp.minimum(far, _squared_distance(x, new, unit)), new[..., 0, :]

    few = count <= _FEW  # a loop's own kernels would take as long as its body's
    _, tokens = jax.lax.scan(add, far, length=count - 1, unroll=few)
    return jnp.concatenate([mean, jnp.moveaxis(tokens, 0, -2)], axis=-2)


def nearest(
    x: Float[Array, "*lead V H"],
    centres: Float[Array, "*lead M H"],
    unit: Float[Array, "*lead H"] | None = None,
) -> Int32[Array, "*lead V"]:
    """Number of the centre that is nearest to each token.

    Args:
        x: tokens.
        centres: of x / unit.
        unit: of each channel; None: 1.
    """
    # Units go to the centres, which are few: tokens of bfloat16 stay what they are.
    rows = in_units(centres, unit)
    if x.dtype == jnp.bfloat16:
        dot = split_einsum("...qh,...vh->...qv", rows, x).swapaxes(-1, -2)
    else:
        dot = large_einsum("...vh,...mh->...vm", x, rows)
    distance = jnp.square(centres).sum(-1)[..., None, :] - 2.0 * dot
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def mean_token(
    x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"]
) -> Float[Array, "*lead H"]:
    """Mean of the valid tokens, float32, where the others are 0; 0 where there are none."""
    # No mask: XLA for GPUs fuses none into a sum over tokens, but writes what it leaves.
    count = jnp.maximum(valid.sum(-1), 1).astype(jnp.float32)[..., None]
    return x.astype(jnp.float32).sum(-2) / count


def in_units(
    x: Float[Array, "*lead V H"], unit: Float[Array, "*lead H"] | None
) -> Float[Array, "*lead V H"]:
    """x / unit, float32."""
    x = x.astype(jnp.float32)
    return x if unit is None else x / unit.astype(jnp.float32)[..., None, :]


def _squared_distance(
    x: Float[Array, "*lead V H"], row: Float[Array, "*lead 1 H"], unit: Array | None
) -> Float[Array, "*lead V"]:
    return jnp.square(in_units(x, unit) - row).sum(-1)
