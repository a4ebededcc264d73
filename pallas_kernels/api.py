"""The entry point of decode attention and the ordered, visible choice of an implementation."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax

import vkq_jax.attention.post_scaled
import vkq_jax.attention.reference
from pallas_kernels.attention import mosaic_gpu, support
from pallas_kernels.attention.description import describe
from pallas_kernels.layout.tiled import tile
from vkq_jax.arguments import checked, checked_shapes
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.post_scaled import AttentionOutput
from vkq_jax.attention.query_checks import check_attention_options, check_query
from vkq_jax.attention.soft_cap import check_soft_cap
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.summaries import cells_name
from vkq_jax.cache.visibility import Starts
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.messages import show
from vkq_jax.sharding.bank_parts import shape_of_part

__all__ = [
    "IMPLEMENTATIONS",
    "attend_cache",
    "attend_layer",
    "choose_implementation",
    "decode_attention",
    "explain",
    "slowdown_reason",
    "to_kernel_layout",
    "unavailable_reason",
    "untried_reason",
]

# In order of preference: with `implementation=None` the first one that applies is taken.
IMPLEMENTATIONS: Mapping[str, Callable[..., AttentionOutput]] = MappingProxyType(
    {
        "mosaic_gpu": mosaic_gpu.attend_cache,
        "xla": vkq_jax.attention.post_scaled.attend_cache,
        "reference": vkq_jax.attention.reference.attend_cache,
    }
)


@checked
def decode_attention(
    query: Float[Array, "B T N H"],
    cache_layer: LayerCache,
    *,
    implementation: str | None = None,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of the newest tokens over one layer of the cache, without dequantizing it.

    Args:
        query: queries with RoPE, unscaled, N = K * queries_per_kv_head; any float dtype.
        cache_layer: `KVCache.layer(i)`, the queries' own keys and values already appended.
        implementation: a name of `IMPLEMENTATIONS`; None takes the first that applies.
        visible_text: text entries each query sees; causal over the last T entries by default.
        starts: of a sliding window, from `vkq_jax.window_starts`: the first position of each bank
            that each query sees; by default that of all.
        logits_scale: H ** -0.5 by default; a Python number, static under jit.
        logits_soft_cap: cap of cap * tanh(logits / cap) before the softmax, on visual and text
            scores alike (Gemma 2, arXiv 2408.00118, section 2); before score calibration. A Python
            number, static under jit.

    Returns:
        Softmax-weighted values in the query's dtype; 0 where a query sees nothing at all.

    Raises:
        ValueError: unknown implementation, a query that is not of floats, shapes that do not fit, a
            scale that is no finite number or a soft-cap that is no finite positive one, or a score
            map of other codes.
        NotImplementedError: the implementation asked for does not apply; the message says why.
    """
    attended = attend_cache(
        query,
        cache_layer,
        implementation=implementation,
        visible_text=visible_text,
        starts=starts,
        logits_scale=logits_scale,
        logits_soft_cap=logits_soft_cap,
    )
    return attended.output.astype(query.dtype)


@checked
def attend_cache(
    query: Float[Array, "B T N H"],
    cache_layer: LayerCache,
    *,
    implementation: str | None = None,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> AttentionOutput:
    """`decode_attention` in float32, with log-sum-exp and count of skipped calibrations.

    Args:
        query: with RoPE, unscaled.
        cache_layer: the queries' own keys and values already appended.
        implementation, visible_text, starts, logits_scale, logits_soft_cap: as `decode_attention`.

    Raises:
        ValueError, NotImplementedError: as `decode_attention`.
    """
    check_query(query, cache_layer)
    check_attention_options(query, cache_layer, visible_text, starts, logits_scale)
    name = choose_implementation(implementation, cache_layer, logits_soft_cap)
    return IMPLEMENTATIONS[name](
        query,
        cache_layer,
        visible_text=visible_text,
        starts=starts,
        logits_scale=logits_scale,
        logits_soft_cap=logits_soft_cap,
    )


@checked
def attend_layer(
    query: Float[Array, "B T N H"],
    cache: KVCache,
    index: Int32[Array, ""] | int,
    *,
    implementation: str | None = None,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> AttentionOutput:
    """`attend_cache` on `cache.layer(index)`, for loops over layers.

    An implementation that reads its layer in place spares the copy that taking it out would be.

    Args:
        query: with RoPE, unscaled.
        cache: of all layers.
        index: number of the layer.
        implementation, visible_text, starts, logits_scale, logits_soft_cap: as `decode_attention`.

    Raises:
        ValueError, NotImplementedError: as `decode_attention`.
    """
    check_query(query, cache)
    check_attention_options(query, cache, visible_text, starts, logits_scale)
    name = choose_implementation(implementation, cache, logits_soft_cap)
    options = {
        "visible_text": visible_text,
        "starts": starts,
        "logits_scale": logits_scale,
        "logits_soft_cap": logits_soft_cap,
    }
    if name == "mosaic_gpu":
        return mosaic_gpu.attend_layer(query, cache, index, **options)
    return IMPLEMENTATIONS[name](query, cache.layer(index), **options)


@checked
def to_kernel_layout(bank: VisualBank, *, implementation: str | None = None) -> VisualBank:
    """A bank of one layer, or of all, in the layout of the implementation that will read it.

    Args:
        bank: as `vkq_jax` codes it.
        implementation: as `decode_attention`.

    Returns:
        The bank in the new layout, or unchanged where the implementation does not cover it.
    """
    if implementation not in (None, "mosaic_gpu") or support.device_reason() is not None:
        return bank
    return tile(bank) if implementation or support.untried_reason() is None else bank


@checked_shapes
def choose_implementation(
    name: str | None = None,
    cache: LayerCache | KVCache | None = None,
    logits_soft_cap: float | None = None,
) -> str:
    """The implementation that a call with `implementation=name` runs on this cache and device.

    Args:
        name: as `implementation` of `decode_attention`.
        cache: one layer or all, arrays may be abstract; None: whatever the cache.
        logits_soft_cap: as `decode_attention`; not all implementations have it with score
            calibration.

    Raises:
        ValueError: unknown name, or a soft-cap that is no finite positive number.
        NotImplementedError: the implementation asked for does not apply.
    """
    check_soft_cap(logits_soft_cap)
    if name is None:
        return next(
            n
            for n in IMPLEMENTATIONS
            if unavailable_reason(n, cache, logits_soft_cap) is None and untried_reason(n) is None
        )
    if name not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation must be one of {known} or None, got {show(name)}")
    reason = unavailable_reason(name, cache, logits_soft_cap)
    if reason:
        raise NotImplementedError(f"implementation {name!r} does not apply here: {reason}")
    return name


@checked_shapes
def unavailable_reason(
    name: str,
    cache: LayerCache | KVCache | None = None,
    logits_soft_cap: float | None = None,
) -> str | None:
    """Why an implementation does not apply on this device and to this cache; None if it does.

    Args:
        name: of `IMPLEMENTATIONS`.
        cache, logits_soft_cap: as `choose_implementation`; None: the device alone is asked.

    Returns:
        The device's reason, the cache's, or both: without a GPU one asks what a GPU would do.
    """
    if name != "mosaic_gpu":
        return None
    reasons = [support.device_reason()]
    if cache is not None:
        reasons.append(support.unsupported_reason(cache, logits_soft_cap))
    return "; ".join(filter(None, reasons)) or None


def untried_reason(name: str) -> str | None:
    """Why an implementation that applies here is taken on request only; None if by default."""
    return support.untried_reason() if name == "mosaic_gpu" else None


@checked_shapes
def explain(
    cache: LayerCache | AnyCache,
    query: jax.ShapeDtypeStruct | None = None,
    logits_soft_cap: float | None = None,
) -> str:
    """Which implementation this cache takes here by default, and why the others are not taken.

    Args:
        cache: one layer or all; arrays may be abstract.
        query: shape [B, T, N, H]; with it, and the cache of all layers, the text also says how the
            fused kernel would divide the work, on whatever device.
        logits_soft_cap: as `decode_attention`.

    Returns:
        A line for each implementation, then that of `slowdown_reason`, if any. Layers and heads
        with settings of their own are explained group by group.
    """
    if isinstance(cache, LayeredCache):
        parts = zip(cache.cells, cache.parts, cache.sizes, strict=True)
        own = [(cells, part, _own_query(query, part, *size)) for cells, part, size in parts]
        return "\n".join(f"{cells_name(c)}:\n{explain(p, q, logits_soft_cap)}" for c, p, q in own)
    cache = shape_of_part(cache)
    chosen = choose_implementation(None, cache, logits_soft_cap)
    lines = []
    for name in IMPLEMENTATIONS:
        reason = unavailable_reason(name, cache, logits_soft_cap)
        untried = untried_reason(name)
        requested = "on request" if untried is None else f"on request, {untried}"
        lines.append(f"{name}: {reason or ('taken' if name == chosen else requested)}")
    if query is not None and isinstance(cache, KVCache):
        check_query(query, cache)
        if support.unsupported_reason(cache, logits_soft_cap) is None:
            lines += [f"mosaic_gpu: {line}" for line in describe(cache, query)]
    if slow := slowdown_reason(cache, logits_soft_cap=logits_soft_cap):
        lines.append(f"warning: {slow}")
    return "\n".join(lines)


def _own_query(
    query: jax.ShapeDtypeStruct | None, part: KVCache, num_kv_heads: int, head_dim: int
) -> jax.ShapeDtypeStruct | None:
    """The shape of the queries of a part's heads; K and H are those of its whole layers."""
    if query is None or len(query.shape) != 4:
        return query
    batch, tokens, heads, _ = query.shape
    own = heads * part.num_kv_heads // num_kv_heads
    return jax.ShapeDtypeStruct((batch, tokens, own, head_dim), query.dtype)


_SLOW_BIAS = (
    "attention over this coded cache may be slower here than over a bfloat16 cache: XLA computes "
    "the share of the keys' bias in each score at all positions"
)


@checked_shapes
def slowdown_reason(
    cache: LayerCache | AnyCache,
    implementation: str | None = None,
    logits_soft_cap: float | None = None,
) -> str | None:
    """One line where attention over a coded cache takes longer than over bfloat16; else None.

    XLA on a GPU does, and the fused kernel may with a key bias whose positions have one axis. On
    other devices arithmetic, not memory, takes the time of both.

    Args:
        cache, logits_soft_cap: as `explain`.
        implementation: as `decode_attention`.

    Raises:
        ValueError, NotImplementedError: as `choose_implementation`.
    """
    if isinstance(cache, LayeredCache):
        found = (slowdown_reason(part, implementation, logits_soft_cap) for part in cache.parts)
        return next((line for line in found if line), None)
    cache = shape_of_part(cache)
    name = choose_implementation(implementation, cache, logits_soft_cap)
    coded = any(not isinstance(bank.key, DenseTensor) for bank in cache.visual)
    if not coded or jax.default_backend() != "gpu":
        return None
    if name == "mosaic_gpu":
        # Positions of several axes are few numbers each.
        one_axis = cache.key_bias is not None and cache.key_bias.num_axes == 1
        return _SLOW_BIAS if one_axis else None
    reason = unavailable_reason("mosaic_gpu", cache, logits_soft_cap)
    if reason is None and (untried := untried_reason("mosaic_gpu")) and implementation is None:
        reason = f'{untried}; implementation="mosaic_gpu" asks for it'
    reason = reason or f"{name} was asked for"
    return (
        f"attention over this coded cache is slower here than over a bfloat16 cache, by {name} "
        f"instead of the fused kernel: {reason}"
    )
