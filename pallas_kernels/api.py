"""The entry point of decode attention and the ordered, visible choice of an implementation."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import vkq_jax.attention
import vkq_jax.reference
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention import Attended
from vkq_jax.cache import LayerCache

__all__ = ["IMPLEMENTATIONS", "attend_cache", "choose_implementation", "decode_attention"]

# In order of preference: with `implementation=None` the first one that applies is taken.
IMPLEMENTATIONS: Mapping[str, Callable[..., Attended]] = MappingProxyType(
    {
        "xla": vkq_jax.attention.attend_cache,
        "reference": vkq_jax.reference.attend_cache,
    }
)


def decode_attention(
    query: Float[Array, "B T N H"],
    cache_layer: LayerCache,
    *,
    implementation: str | None = None,
    visible_text: Int32[Array, "B T"] | None = None,
    logits_scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of the newest tokens over one layer of the cache, without dequantizing it.

    Args:
        query: queries with RoPE, unscaled, N = K * queries_per_kv_head; any float dtype.
        cache_layer: `KVCache.layer(i)`, the queries' own keys and values already appended.
        implementation: a name of `IMPLEMENTATIONS`; None takes the first that applies.
        visible_text: text entries each query sees; causal over the last T entries by default.
        logits_scale: H ** -0.5 by default.

    Returns:
        Softmax-weighted values in the query's dtype; 0 where a query sees nothing at all.

    Raises:
        ValueError: unknown implementation, or shapes that do not fit.
    """
    attended = attend_cache(
        query,
        cache_layer,
        implementation=implementation,
        visible_text=visible_text,
        logits_scale=logits_scale,
    )
    return attended.output.astype(query.dtype)


def attend_cache(
    query: Float[Array, "B T N H"],
    cache_layer: LayerCache,
    *,
    implementation: str | None = None,
    visible_text: Int32[Array, "B T"] | None = None,
    logits_scale: float | None = None,
) -> Attended:
    """`decode_attention` in float32 with its log-sum-exp and the count of guarded rows."""
    batch, num_kv_heads, _, head_dim = cache_layer.text.key.shape
    if query.shape[0] != batch or query.shape[3] != head_dim or query.shape[2] % num_kv_heads:
        raise ValueError(
            f"query must be [B={batch}, T, N=multiple of {num_kv_heads}, H={head_dim}] for this "
            f"cache, got {list(query.shape)}"
        )
    attend = IMPLEMENTATIONS[choose_implementation(implementation)]
    return attend(query, cache_layer, visible_text=visible_text, logits_scale=logits_scale)


def choose_implementation(name: str | None = None) -> str:
    """The implementation that a call with `implementation=name` runs."""
    if name is None:
        return next(iter(IMPLEMENTATIONS))
    if name not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation must be one of {known} or None, got {name!r}")
    return name
