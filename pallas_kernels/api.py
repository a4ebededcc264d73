"""The entry point of decode attention and the ordered, visible choice of an implementation."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import vkq_jax.attention
import vkq_jax.reference
from pallas_kernels import mosaic_gpu
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention import Attended
from vkq_jax.cache import LayerCache

__all__ = [
    "IMPLEMENTATIONS",
    "attend_cache",
    "choose_implementation",
    "decode_attention",
    "explain",
    "unavailable_reason",
]

# In order of preference: with `implementation=None` the first one that applies is taken. The fused
# kernel has to be asked for by name until its benchmarks stand.
IMPLEMENTATIONS: Mapping[str, Callable[..., Attended]] = MappingProxyType(
    {
        "xla": vkq_jax.attention.attend_cache,
        "mosaic_gpu": mosaic_gpu.attend_cache,
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
        NotImplementedError: the implementation asked for does not apply; the message says why.
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
    attend = IMPLEMENTATIONS[choose_implementation(implementation, cache_layer)]
    return attend(query, cache_layer, visible_text=visible_text, logits_scale=logits_scale)


def choose_implementation(name: str | None = None, cache_layer: LayerCache | None = None) -> str:
    """The implementation that a call with `implementation=name` runs on this cache and device.

    Raises:
        ValueError: unknown name.
        NotImplementedError: the implementation asked for does not apply.
    """
    if name is None:
        return next(n for n in IMPLEMENTATIONS if unavailable_reason(n, cache_layer) is None)
    if name not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation must be one of {known} or None, got {name!r}")
    reason = unavailable_reason(name, cache_layer)
    if reason:
        raise NotImplementedError(f"implementation {name!r} does not apply here: {reason}")
    return name


def unavailable_reason(name: str, cache_layer: LayerCache | None = None) -> str | None:
    """Why an implementation does not apply on this device (and to this cache); None if it does."""
    if name != "mosaic_gpu":
        return None
    reason = mosaic_gpu.device_reason()
    if reason is None and cache_layer is not None:
        reason = mosaic_gpu.unsupported_reason(cache_layer)
    return reason


def explain(cache_layer: LayerCache) -> str:
    """Which implementation this cache takes here by default, and what the others would do."""
    chosen = choose_implementation(None, cache_layer)
    lines = []
    for name in IMPLEMENTATIONS:
        reason = unavailable_reason(name, cache_layer)
        lines.append(f"{name}: {reason or ('taken' if name == chosen else 'on request')}")
    return "\n".join(lines)
