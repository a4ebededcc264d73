"""Attention without a cache, and how towers call it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.attention.post_scaled import attend_dense

__all__ = ["Attend", "attend_with_mask", "causal_mask", "dense_attention"]

type Attend = Callable[
    [Array | int, Array, Array | None, Array | None, Any], tuple[Array, Any, Any]
]
"""`attend(layer, query, key, value, carry) -> (output, carry, out)`.

Takes the layer's number (an int32 scalar or an int), query [B, T, N, H], key and value [B, T, K, H]
(None where another layer makes them) and what the previous layer handed on; returns [B, T, N, H],
what the next layer gets, and any pytree, which the tower stacks over layers. Queries and keys carry
RoPE if the tower has it; scores are not scaled yet.
"""


def attend_with_mask(
    mask_of: Callable[[Array], Bool[Array, "#B T S"] | None],
    *,
    logits_scale: float,
    logits_soft_cap: float | None = None,
) -> Attend:
    """Attention among the tokens of the call, those that a layer's mask shows; hands nothing on."""

    def attend(layer, query, key, value, carry):
        output = dense_attention(
            query,
            key,
            value,
            mask_of(layer),
            logits_scale=logits_scale,
            logits_soft_cap=logits_soft_cap,
        )
        return output, carry, None

    return attend


def dense_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "#B T S"] | None,
    *,
    logits_scale: float | None,
    logits_soft_cap: float | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(query . key * logits_scale) . value where `mask` is True; softmax in float32.

    N is a multiple of K: consecutive query heads share a key/value head. `logits_scale=None` is
    H ** -0.5. A query that may see nothing (padding) gets the mean of all values, not NaN.
    `mask=None` lets everything be seen. Scores are capped before the mask where there is a cap, see
    `vkq_jax.attention.soft_cap`; it needs a mask, and a query that sees nothing then gets 0.
    """
    if logits_soft_cap is not None:
        assert mask is not None
        attended = attend_dense(
            query,
            key,
            value,
            mask,
            logits_scale=logits_scale,
            logits_soft_cap=logits_soft_cap,
        )
        return attended.output.astype(query.dtype)
    heads = None if mask is None else mask[:, None]
    fused = _cudnn_applies(query)
    if fused and heads is not None:
        # Under vmap cuDNN's rule wants a mask that is mapped wherever the query is.
        always = jnp.isfinite(query[:, 0, 0, 0]) | True
        heads = heads & always[:, None, None, None]
    with jax.numpy_dtype_promotion("standard"):  # JAX's own function promotes bfloat16
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
