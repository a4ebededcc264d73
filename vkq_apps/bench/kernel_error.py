"""The fused kernel's results over random banks, and how far they are from float32.

Banks are random words: attention does not care what they mean.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import TiledLevels, TiledSigns
from pallas_kernels.attention.banks import Banks, DenseBank
from pallas_kernels.attention.fused import (
    fused_attention,
    keeps_scores,
    packed_starts,
    score_range,
)
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.key_bias import bias_share
from pallas_kernels.attention.launch import Launch
from pallas_kernels.layout import layouts
from vkq_apps.bench.cases import Calibration, Case
from vkq_apps.bench.dictionary_banks import random_bank, random_tables
from vkq_jax import slots
from vkq_jax.array_types import Array, Int32
from vkq_jax.attention.post_scaled import bias_scores, per_kv_head
from vkq_jax.cache.key_bias import KeyBias, visual_reach
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.settings.config import ScoreCalibration
from vkq_jax.settings.score_maps import ScoreMap, calibrate, score_map

__all__ = ["attend", "error", "random_banks"]


_CALIBRATION = ScoreCalibration()

Seen = dict[str, Int32[Array, "B 1"]]  # by bank


def random_banks(
    case: Case, seed: int, *, ragged: bool = False
) -> tuple[Banks, Seen, Seen, CodeTables | None, KeyBias | None]:
    """Random banks of one layer, where what the queries see of them ends and begins, tables, bias.

    The ends are those of dense banks; without a window there are no beginnings.

    Ragged: the first sequence is full, the next has no visual tokens, text lengths vary.
    """
    rng = np.random.default_rng(seed)

    def lengths(positions):
        length = np.full(case.batch, positions)
        if ragged:
            length[1:] = rng.integers(0, positions, case.batch - 1)
        return length

    visual = lengths(case.positions)
    if ragged:
        visual[1] = 0
    visual = jnp.asarray(visual, jnp.int32)
    tensors, dense = _random_tensors(case, _key(seed))
    visible = {}
    if "visual" in dense:
        visible["visual"] = visual[:, None]
    if "text" in dense:
        visible["text"] = jnp.asarray(lengths(case.text), jnp.int32)[:, None]
    packed = VisualBank(key=tensors[0], value=tensors[1], length=visual) if tensors else None
    tables = None
    if case.dictionary is not None:
        tables = _random_tables(case, _key(seed))
        packed = _random_dictionary(case, visual, _key(seed))
    starts = {}
    if case.window is not None:
        ends = visible if packed is None else visible | {"packed": visual[:, None]}
        starts = {name: jnp.maximum(end - case.window, 0) for name, end in ends.items()}
    bias = None
    if case.key_bias:
        assert packed is not None
        position = _positions(case)
        packed = dataclasses.replace(packed, position=jnp.asarray(position))
        bias = _random_bias(case, _key(seed))
        if case.key_bias != "any":
            bias = bias.with_waves(visual_reach([position]), case.positions)
            assert bias.waves is not None
    return Banks(packed, dense), visible, starts, tables, bias


def _key(seed: int) -> jax.Array:
    """A key whose generator, unlike the default one, compiles in no time."""
    return jax.random.key(seed, impl="unsafe_rbg")


@functools.partial(jax.jit, static_argnames="case")
def _random_bias(case: Case, key: jax.Array) -> KeyBias:
    half = case.head_dim // 2
    frequencies = 1e4 ** -(jnp.arange(half, dtype=jnp.float32) / half)
    axes = None
    if case.key_bias == "picture":
        axes = tuple((np.arange(half) * 8 // half * 3 // 8).tolist())
    return KeyBias(2 * jax.random.normal(key, (case.kv_heads, case.head_dim)), frequencies, axes)


def _positions(case: Case) -> Int32[np.ndarray, "B V *axes"]:
    """Positions of the visual tokens, which begin at another one in each sequence."""
    number, first = np.arange(case.positions), 16 + np.arange(case.batch)
    if case.key_bias != "picture":
        return (first[:, None] + number).astype(np.int32)
    width = math.isqrt(case.positions)
    axes = np.stack([0 * number, number // width, number % width], axis=-1)
    return (first[:, None, None] + axes).astype(np.int32)


@functools.partial(jax.jit, static_argnames="case")
def _random_tables(case: Case, key: jax.Array) -> CodeTables | None:
    assert case.dictionary is not None
    return random_tables(case.dictionary, case.kv_heads, case.head_dim, key)


@functools.partial(jax.jit, static_argnames="case")
def _random_dictionary(case: Case, length: Int32[Array, "B"], key: jax.Array) -> VisualBank:
    assert case.dictionary is not None
    lead = (1, case.batch, case.kv_heads)
    return random_bank(case.dictionary, lead, case.positions, case.head_dim, length, key)


@functools.partial(jax.jit, static_argnames="case")
def _random_tensors(case: Case, key: jax.Array) -> tuple[list[Any], dict[str, DenseBank]]:
    """Packed keys and values, if any, and dense banks; of one layer."""
    keys = iter(jax.random.split(key, 16))
    lead = (1, case.batch, case.kv_heads)
    group_size = case.group_size or case.positions
    groups = -(-case.positions // group_size)

    def stored(table):
        return layouts.pad_channels(table.astype(jnp.bfloat16))

    def tensor(side):
        count = layouts.key_words if side == "key" else layouts.value_words
        words = (*lead, case.code_bits * count(case.positions, case.head_dim))
        packed = jax.random.bits(next(keys), words, jnp.uint32)
        shared: dict[str, Any] = {
            "side": side,
            "num_positions": case.positions,
            "head_dim": case.head_dim,
        }
        table = (*lead, groups, case.head_dim)
        centre = 0.3 * jax.random.normal(next(keys), table)
        if case.codes.startswith("levels"):
            step = jax.random.uniform(next(keys), table, minval=0.5, maxval=2.5)
            lower, upper = (stored(centre + s * step) for s in (-0.5, 0.5))
            return TiledLevels(
                packed, lower, upper, group_size=group_size, bits=case.code_bits, **shared
            )
        positions = jnp.exp(0.3 * jax.random.normal(next(keys), (*lead, case.positions)))
        if case.codes == "signs8":
            scale = jnp.clip(jnp.round(8 * jnp.log2(positions)) + 128, 1, 255).astype(jnp.uint8)
        else:
            scale = positions.astype(jnp.bfloat16)
        return TiledSigns(
            packed,
            stored(centre),
            layouts.tile_scales(scale),
            rotated=True,
            score_error_factor=0.01,
            **shared,
        )

    def dense(positions):
        shape = (*lead, positions, case.head_dim)
        return DenseBank(*(jax.random.normal(next(keys), shape, jnp.bfloat16) for _ in range(2)))

    is_dense = case.codes == "bfloat16"
    banks = {"visual": dense(case.positions)} if is_dense else {}
    if case.text:
        banks["text"] = dense(case.text)
    if case.text and case.text_bits == 8:
        full = jnp.full(case.batch, case.text, jnp.int32)
        text = TextBank(banks["text"].key, banks["text"].value, full).in_8_bits()
        banks["text"] = DenseBank(text.key, text.value, text.key_scale, text.value_scale)
    if is_dense or case.dictionary is not None:
        return [], banks
    return [tensor("key"), tensor("value")], banks


def attend(
    calibration: Calibration | None,
    launch: Launch,
    tuning: TuningConfig | None,
    query: jax.Array,
    banks: Banks,
    visible: Seen,
    starts: Seen,
    tables: CodeTables | None,
    bias: KeyBias | None,
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp by the kernel."""
    layer, mapped, in_launch = jnp.int32(0), None, None
    share = None
    if bias is not None and banks.packed is not None:
        share = bias_share(query, banks.packed, layer, bias)
    if calibration == "per step":
        assert banks.packed is not None
        if keeps_scores(banks, query.shape, tuning):
            in_launch = _CALIBRATION
        else:
            start = starts.get("packed")
            found = score_range(query, banks.packed, layer, launch, tuning, start, share)
            mapped, _ = score_map(*found, _CALIBRATION)
    elif calibration == "static":
        mapped = _static_map(query.shape[:-1])
    begins = dict(starts)
    if banks.packed is not None and "packed" in starts:
        begins |= packed_starts(banks.packed, 0, begins.pop("packed"))
    output, logsumexp, *_ = fused_attention(
        query,
        visible,
        banks,
        layer,
        launch,
        tuning,
        mapped,
        starts=begins,
        calibration=in_launch,
        tables=jax.tree.map(lambda x: x[None], tables),
        bias=share,
    )
    return output, logsumexp


def _share(query: jax.Array, banks: Banks, bias: KeyBias | None) -> jax.Array | None:
    """The share of a key bias in the scores of the packed bank's slots [B, K, Q, S]."""
    if bias is None or banks.packed is None:
        return None
    bias = dataclasses.replace(bias, waves=None)  # in another way than the kernel
    return bias_scores(query, banks.packed.of_layer(0), bias)


def _static_map(rows: tuple[int, ...]) -> ScoreMap:
    """A map of scores, as if it had been made before."""
    return ScoreMap(jnp.full(rows, 0.9), jnp.full(rows, -0.25))


def reference(
    calibration: Calibration | None,
    query: jax.Array,
    banks: Banks,
    visible: Seen,
    starts: Seen,
    tables: CodeTables | None,
    bias: KeyBias | None,
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp in float32, from the codes' own arithmetic in XLA."""

    def seen(name, end, scores):
        start = starts.get(name, jnp.zeros_like(end))
        if name == "packed" and (bank := banks.packed) and bank.class_map is not None:
            visible = bank.of_layer(0).visible(start, end, scores.shape[-1])
        else:
            visible = slots.visible(start, end, scores.shape[-1])[:, None]
        return per_kv_head(visible, scores)

    with jax.default_matmul_precision("highest"):
        parts, values, masks = [], [], []
        tensors = jax.tree.map(
            lambda x: x[0], (banks.dense, banks.packed and (banks.packed.key, banks.packed.value))
        )
        for name, bank in tensors[0].items():
            key, value = TextBank(
                bank.key, bank.value, visible[name][:, 0], None, bank.key_scale, bank.value_scale
            ).dequantize()
            parts.append(jnp.einsum("bkqh,bksh->bkqs", query, key))
            values.append(functools.partial(jnp.einsum, "bksh,bkqs->bkqh", value))
            masks.append(seen(name, visible[name], parts[-1]))
        if banks.packed is not None:
            key, value = (side.plain() for side in tensors[1])
            of_key, of_value = (tables.key, tables.value) if tables else (None, None)
            parts.append(key.scores(query, of_key))
            if (share := _share(query, banks, bias)) is not None:
                parts[-1] = parts[-1] + share
            values.append(lambda weights: value.weighted_sum(weights, of_value))
            masks.append(seen("packed", banks.packed.length[:, None], parts[-1]))
            if calibration == "per step":
                parts[-1] = calibrate(parts[-1], masks[-1], _CALIBRATION)[0]
            elif calibration == "static":
                parts[-1] = _static_map(query.shape[:-1]).apply(parts[-1])
        logits = [jnp.where(mask, x, -jnp.inf) for x, mask in zip(parts, masks, strict=True)]
        total = jax.nn.logsumexp(jnp.concatenate(logits, -1), -1)
        safe = jnp.where(jnp.isfinite(total), total, 0.0)[..., None]
        weighted = [f(jnp.exp(x - safe)) for f, x in zip(values, logits, strict=True)]
        return functools.reduce(jnp.add, weighted), total


def error(
    case: Case, launch: Launch, tuning: TuningConfig | None, *, ragged: bool
) -> dict[str, float]:
    """Relative error of the output and absolute one of the log-sum-exp against float32.

    Small ragged cases get their inputs and their oracle on the CPU: a GPU only runs the kernel,
    which is quicker, and all that `compute-sanitizer` has to follow.
    """
    case = dataclasses.replace(case, batch=min(case.batch, 2))
    with jax.default_device(jax.devices("cpu")[0] if ragged else None):
        banks = random_banks(case, seed=time.time_ns() % 2**31, ragged=ragged)
        shape = (case.batch, case.kv_heads, case.queries, case.head_dim)
        query = 2 * case.head_dim**-0.5 * jax.random.normal(jax.random.key(5), shape)
        expected, expected_logsumexp = jax.jit(functools.partial(reference, case.calibration))(
            query, *banks
        )
    inputs = jax.device_put((query, *banks), jax.devices()[0])
    # Small cases are not worth a search for the fastest products beside the kernel.
    options = {"xla_gpu_autotune_level": 0} if ragged else {}
    computed = functools.partial(attend, case.calibration, launch, tuning)
    output, logsumexp = jax.jit(computed, compiler_options=options)(*inputs)
    expected, expected_logsumexp = jax.device_put((expected, expected_logsumexp), jax.devices()[0])
    seen = jnp.isfinite(expected_logsumexp)
    if not bool(jnp.all(jnp.isfinite(output)) & jnp.all(jnp.isfinite(logsumexp) == seen)):
        raise AssertionError("not finite, or finite where nothing is visible")
    difference = jnp.where(seen[..., None], output - expected, 0.0)
    norm = jnp.linalg.norm(jnp.where(seen[..., None], expected, 0.0))
    apart = jnp.where(seen, logsumexp - expected_logsumexp, 0.0)
    return {
        "relative_error": float(jnp.linalg.norm(difference) / norm),
        "logsumexp_error": float(jnp.abs(apart).max()),
    }
