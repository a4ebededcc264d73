"""Decode attention by the fused GPU kernel: one launch for a layer, the text bank in it.

Where H is neither 64 nor 128, the text bank is XLA's, and so is, but for 256, the rotation of sign
codes (`outer_rotation`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

import vkq_jax.attention.post_scaled
import vkq_jax.settings.score_maps
from pallas_kernels.attention.banks import Banks, DenseBank
from pallas_kernels.attention.fused import (
    fused_attention,
    keeps_scores,
    packed_starts,
    score_range,
)
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.key_bias import BiasShare, bias_share
from pallas_kernels.attention.launch import Launch, gpu_launch
from pallas_kernels.isa.architectures import ARCHITECTURES, architecture_here
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import tile, untileable_bank_reason
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.post_scaled import AttentionOutput, map_of_rows, merge, scaled_rows
from vkq_jax.attention.soft_cap import check_soft_cap
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.sharing import shares_visual
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visibility import Starts, causal_text
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.pytree import take_layer
from vkq_jax.settings.config import ScoreCalibration
from vkq_jax.settings.score_maps import ScoreMap

__all__ = [
    "attend_cache",
    "attend_layer",
    "calibrates_in_launch",
    "device_reason",
    "launches_of",
    "uncovered_text",
    "unsupported_reason",
    "untried_reason",
]


def attend_cache(
    query: Float[Array, "B T N H"],
    layer: LayerCache,
    *,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
    launch: Launch = gpu_launch,
    tuning: TuningConfig | None = None,
) -> AttentionOutput:
    """`attend_layer` for a layer that has been taken out of its cache."""
    text = layer.text.map_arrays(lambda x: x[None])

    def stacked(tensor):
        return jax.tree.map(lambda x: x[None], tensor)

    banks = tuple(
        VisualBank(
            stacked(bank.key),
            stacked(bank.value),
            bank.length,
            class_map=stacked(bank.class_map),
            position=bank.position,
        )
        for bank in layer.visual
    )
    none = jnp.zeros_like(text.length)
    bias = layer.key_bias
    cache = KVCache(
        banks,
        text,
        position=none,
        calibration_skipped=none,
        quant=layer.quant,
        score_map=stacked(layer.score_map),
        tables=stacked(layer.tables),
        key_bias=bias and dataclasses.replace(bias, bias=bias.bias[None]),
    )
    return attend_layer(
        query,
        cache,
        0,
        visible_text=visible_text,
        starts=starts,
        logits_scale=logits_scale,
        logits_soft_cap=logits_soft_cap,
        launch=launch,
        tuning=tuning,
    )


def attend_layer(
    query: Float[Array, "B T N H"],
    cache: KVCache,
    index: Int32[Array, ""] | int,
    *,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
    launch: Launch = gpu_launch,
    tuning: TuningConfig | None = None,
) -> AttentionOutput:
    """Same contract as `vkq_jax.attention.post_scaled.attend_cache` on `cache.layer(index)`.

    The kernel reads its layer in place: no bank is sliced or copied. The gradient, with respect to
    queries, the text bank and a score map, is that of post-scaled attention in XLA.

    Args:
        query, visible_text, starts, logits_scale, logits_soft_cap: as there.
        cache: banks that are not tiled yet (see `pallas_kernels.tile`) are tiled on the way, which
            costs more than the attention.
        index: of the layer.
        launch: runs the kernel; tests emulate it.
        tuning: how the kernel's work is cut; None chooses by shape.

    Raises:
        NotImplementedError: the kernel does not cover this cache, or not with a soft-cap.
    """
    check_soft_cap(logits_soft_cap)
    reason = unsupported_reason(cache, logits_soft_cap)
    if reason:
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    if visible_text is None:
        visible_text = causal_text(cache.text.length, query.shape[1])
    attend = functools.partial(_attend, logits_scale, logits_soft_cap, launch, tuning)
    differentiable = (query, cache.text, cache.score_map)
    return AttentionOutput(*attend(differentiable, cache, jnp.asarray(index), visible_text, starts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attend(
    logits_scale,
    logits_soft_cap,
    launch,
    tuning,
    differentiable,
    cache,
    index,
    visible_text,
    starts,
):
    query, text, static = differentiable
    num_queries, num_kv_heads = query.shape[1], text.key.shape[2]
    rows = scaled_rows(query, num_kv_heads, logits_scale)
    cache = dataclasses.replace(cache, text=text)
    launches = launches_of(cache, index, starts)
    biases = _bias_shares(rows, cache, index) or [None] * len(launches)
    score_map = in_launch = hit = None
    if static is not None:
        score_map = map_of_rows(take_layer(static, index), query.shape, num_kv_heads)
    elif cache.quant.calibration is not None and cache.visual:
        if calibrates_in_launch([banks for banks, _ in launches], rows.shape, tuning):
            in_launch = cache.quant.calibration
        else:
            ranges = [
                score_range(rows, banks.packed, index, launch, tuning, begins.get("packed"), bias)
                for (banks, begins), bias in zip(launches, biases, strict=True)
                if banks.packed is not None
            ]
            score_map, hit = _calibration(ranges, cache.quant.calibration)
    parts = []
    for (banks, begins), bias in zip(launches, biases, strict=True):
        visible = {
            name: jnp.broadcast_to(
                visible_text if name == "text" else cache.visual[int(name)].length[:, None],
                visible_text.shape,
            )
            for name in banks.dense
        }
        mapped = None if banks.packed is None else score_map
        output, logsumexp, *found = fused_attention(
            rows,
            visible,
            banks,
            index,
            launch,
            tuning,
            mapped,
            logits_soft_cap,
            begins,
            in_launch,
            cache.tables,
            bias,
        )
        if in_launch is not None:
            _, hit = _calibration([found], in_launch)
        parts.append(AttentionOutput.from_kv_heads(output, logsumexp, num_queries))
    if uncovered_text(text) and text.cache_length:
        layer = dataclasses.replace(cache, visual=()).layer(index)
        parts.append(
            vkq_jax.attention.post_scaled.attend_cache(
                query,
                layer,
                visible_text=visible_text,
                starts=starts and dataclasses.replace(starts, visual=()),
                logits_scale=logits_scale,
                logits_soft_cap=logits_soft_cap,
            )
        )
    attended = functools.reduce(merge, parts)
    if hit is None:
        calibration_skipped = jnp.zeros(query.shape[0], jnp.int32)
    else:
        calibration_skipped = hit.sum((1, 2), dtype=jnp.int32)
    return attended.output, attended.logsumexp, calibration_skipped


def _bias_shares(
    rows: Float[Array, "B K Q H"], cache: KVCache, index: Int32[Array, ""]
) -> list[BiasShare]:
    """The share of a key bias in the scores of each coded bank; none without one."""
    if cache.key_bias is None:
        return []
    bias = cache.key_bias.of_layer(index)
    return [bias_share(rows, bank, index, bias) for bank in cache.visual]


def _calibration(
    ranges: Sequence[Sequence[Float[Array, "B K Q"]]], settings: ScoreCalibration
) -> tuple[ScoreMap, Bool[Array, "B K Q"]]:
    """The `score_map` of scores whose lowest and highest in each bank these are."""
    lowest, highest = zip(*ranges, strict=True)
    return vkq_jax.settings.score_maps.score_map(
        functools.reduce(jnp.minimum, lowest), functools.reduce(jnp.maximum, highest), settings
    )


def calibrates_in_launch(
    launches: Sequence[Banks], query: tuple[int, ...], tuning: TuningConfig | None = None
) -> bool:
    """Whether the only launch finds the range of its scores itself."""
    return len(launches) == 1 and keeps_scores(launches[0], query, tuning)


def launches_of(
    cache: KVCache, index: Int32[Array, ""] | int, starts: Starts | None = None
) -> list[tuple[Banks, dict[str, Int32[Array, "B ... T"]]]]:
    """The banks of each launch: all dense banks with the first packed one, then the others.

    Dense banks are named by their number among the visual ones, or "text"; a text bank that is not
    covered (`uncovered_text`), or has no room for anything, is in no launch. Beside the banks of
    a launch their starts, see `fused_attention`.
    """
    packed, dense, begins = [], {}, {}
    for number, bank in enumerate(cache.visual):
        start = None if starts is None else starts.visual[number]
        if isinstance(bank.key, DenseTensor):
            assert isinstance(bank.value, DenseTensor)
            dense[str(number)] = DenseBank(bank.key.values, bank.value.values)
            begins[str(number)] = start
        else:
            begins_of = {} if start is None else packed_starts(bank, index, start)
            tiled = tile(bank)
            packed.append((VisualBank(tiled.key, tiled.value, tiled.length), begins_of))
    if not uncovered_text(cache.text) and cache.text.cache_length:
        text = cache.text
        dense["text"] = DenseBank(text.key, text.value, text.key_scale, text.value_scale)
        begins["text"] = None if starts is None else starts.text
    (first, of_first), *others = packed or [(None, {})]
    launches = [(Banks(first, dense), of_first | begins)]
    launches += [(Banks(bank, {}), start) for bank, start in others]
    return launches if starts is not None else [(banks, {}) for banks, _ in launches]


def _forward(logits_scale, logits_soft_cap, launch, tuning, *residuals):
    return _attend(logits_scale, logits_soft_cap, launch, tuning, *residuals), residuals


def _backward(logits_scale, logits_soft_cap, launch, tuning, residuals, cotangents):
    del launch, tuning
    differentiable, cache, index, visible_text, starts = residuals

    def reference(differentiable):
        query, text, static = differentiable
        attended = vkq_jax.attention.post_scaled.attend_cache(
            query,
            dataclasses.replace(cache, text=text, score_map=static).layer(index),
            visible_text=visible_text,
            starts=starts,
            logits_scale=logits_scale,
            logits_soft_cap=logits_soft_cap,
        )
        return attended.output, attended.logsumexp

    _, pullback = jax.vjp(reference, differentiable)
    return (*pullback(cotangents[:2]), None, None, None, None)


_attend.defvjp(_forward, _backward)


def unsupported_reason(
    cache: LayerCache | KVCache, logits_soft_cap: float | None = None
) -> str | None:
    """Why the kernel does not cover a cache (and a soft-cap); None if it does."""
    reason = layouts.head_dim_reason(cache.text.key.shape[-1])
    if reason:
        return reason
    if not cache.visual and (reason := uncovered_text(cache.text)):
        return reason
    if not cache.visual and not cache.text.cache_length:
        return "the cache has no room for anything"
    if shares_visual(cache):
        return "a visual bank that several sequences share"
    if cache.visual and cache.key_bias is not None and logits_soft_cap is not None:
        return "logits soft-cap together with a key bias"
    asked = cache.quant.calibration is not None or cache.score_map is not None
    calibrated = asked and bool(cache.visual)
    if logits_soft_cap is not None and calibrated:
        return "logits soft-cap together with score calibration"
    if calibrated and any(bank.class_map is not None for bank in cache.visual):
        return "score calibration of dictionary codes"
    for bank in cache.visual:
        if isinstance(bank.key, DenseTensor) and isinstance(bank.value, DenseTensor):
            if calibrated:
                return "score calibration of an uncoded bank"
            if cache.key_bias is not None:
                return "a key bias beside an uncoded bank"
            reason = _uncovered_dense(bank.key.values) or _uncovered_dense(bank.value.values)
        else:
            reason = untileable_bank_reason(bank)
        if reason:
            return reason
    return None


def uncovered_text(text: TextBank) -> str | None:
    """Why no launch reads a text bank (maybe abstract); None if one does."""
    if text.key_scale is None:
        return _uncovered_dense(text.key)
    if text.key_scale.dtype != jnp.bfloat16:
        return f"text in 8 bits with scales in {text.key_scale.dtype}, not bfloat16"
    return _uncovered_head_dim(text.key)


def _uncovered_dense(x: Array | jax.ShapeDtypeStruct) -> str | None:
    """Why no launch reads dense keys or values (maybe abstract); None if one does."""
    if x.dtype != jnp.bfloat16:
        return f"dense banks in {x.dtype}, not bfloat16"
    return _uncovered_head_dim(x)


def _uncovered_head_dim(x: Array | jax.ShapeDtypeStruct) -> str | None:
    if x.shape[-1] not in layouts.HEAD_DIMS:
        return f"dense banks of head_dim {x.shape[-1]}, none of {layouts.HEAD_DIMS}"
    return None


def device_reason() -> str | None:
    """Why the kernel cannot run on JAX's default device; None if it can."""
    if jax.default_backend() != "gpu":
        return f"needs an NVIDIA GPU, the default backend is {jax.default_backend()}"
    capability = str(getattr(jax.devices()[0], "compute_capability", "unknown"))
    if capability not in ARCHITECTURES:
        return f"compute capability {capability} is none of {', '.join(ARCHITECTURES)}"
    return None


def untried_reason() -> str | None:
    """Why the kernel, which could run on JAX's default device, does so on request only."""
    here = architecture_here()
    if here is None or here.tried:
        return None
    return f"not run on such a card yet (compute capability {here.capability})"
