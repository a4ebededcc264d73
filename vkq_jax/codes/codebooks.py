"""Codebooks: centroids that tokens of many images share."""

import functools

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float
from vkq_jax.codes.image_centres import nearest

__all__ = ["fit_codebook"]

_STEPS = 15


@functools.partial(jax.jit, static_argnames="count")
def fit_codebook(
    tokens: Float[Array, "*K n H"], weight: Float[Array, "*K n"], count: int, key: jax.Array
) -> Float[Array, "*K M H"]:
    """Weighted k-means centroids of tokens, head by head, float32.

    Starts at tokens drawn at random and takes fifteen steps of Lloyd's algorithm. A centroid that
    no token is nearest to stays where it is.

    Args:
        tokens: at least `count` of each head.
        weight: how much each counts.
        count: M, centroids of a head.
        key: PRNG key of the start.

    Raises:
        ValueError: there are fewer tokens than centroids.
    """
    *lead, available, head_dim = tokens.shape
    if available < count:
        raise ValueError(f"expected at least {count} tokens of each head, got {available}")
    flat = tokens.astype(jnp.float32).reshape(-1, available, head_dim)

    def fit(args):
        tokens, weight, key = args
        start = jax.random.choice(key, tokens, (count,), replace=False)

        def step(_, centres):
            number = nearest(tokens, centres)
            sums = jnp.zeros_like(centres).at[number].add(tokens * weight[:, None])
            size = jnp.zeros(count, jnp.float32).at[number].add(weight)[:, None]
            return jnp.where(size > 0, sums / jnp.where(size > 0, size, 1.0), centres)

        return jax.lax.fori_loop(0, _STEPS, step, start)

    # One head after the other: the distances of all at once would be large.
    weights = weight.astype(jnp.float32).reshape(-1, available)
    books = jax.lax.map(fit, (flat, weights, jax.random.split(key, flat.shape[0])))
    return books.reshape(*lead, count, head_dim)
