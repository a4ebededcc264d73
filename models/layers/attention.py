"""Attention without a cache."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float

__all__ = ["causal_mask", "dense_attention"]


def dense_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "#B T S"] | None,
    *,
    logits_scale: float,
) -> Float[Array, "B T N H"]:
    """softmax(query . key * logits_scale) . value where `mask` is True; softmax in float32.

    N is a multiple of K: consecutive query heads share a key/value head. A query that may see
    nothing (padding) gets the mean of all values, not NaN. `mask=None` lets everything be seen.
    """
    heads = None if mask is None else mask[:, None]
    fused = _cudnn_applies(query)
    if fused and heads is not None:
        # Under vmap cuDNN's rule wants a mask that is mapped wherever the query is.
        always = jnp.isfinite(query[:, 0, 0, 0]) | True
        heads = heads & always[:, None, None, None]
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=heads,
        scale=logits_scale,
        implementation="cudnn" if fused else "xla",
    )


def _cudnn_applies(query: Float[Array, "B T N H"]) -> bool:
    """Whether cuDNN's fused attention, which spares the T x S scores, can run this."""
    head_dim = query.shape[-1]
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128


def causal_mask(mask: Bool[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which position (last axis) each position sees: itself and earlier ones, padding apart."""
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((1, length, length), bool)) & mask[:, None, :]
