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
from pallas_kernels.attention.support import uncovered_text, unsupported_reason
from pallas_kernels.layout.tiled import tile
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.post_scaled import AttentionOutput, map_of_rows, merge, scaled_rows
from vkq_jax.attention.soft_cap import check_soft_cap
from vkq_jax.cache.kv_cache import KVCache, LayerCache
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
    "launches_of",
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
