"""The fused kernel's body, emulated on the CPU, against the float32 oracle; lowering to CUDA."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.reference
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.body import packed_s8
from pallas_kernels.attention.fused import score_range
from pallas_kernels.attention.kernel_spec import Coding, KernelSpec, Packed, TuningConfig
from pallas_kernels.attention.launch import emulated_launch, program_of
from pallas_kernels.attention.tuning_configs import choose_tuning, keeping_tuning
from pallas_kernels.isa.emulated_operations import EmulatedOperations
from pallas_kernels.isa.operations import Operations
from tests.support.caches import (
    Shape,
    random_layer,
    random_starts,
    relative_error,
    with_score_map,
)
from tests.support.compiling import lower_to_cuda, needs_ptxas, ptxas
from vkq_jax import KVQuantConfig, LevelCodes, ScoreCalibration, SignCodes
from vkq_jax.attention import from_kv_heads, to_kv_heads
from vkq_jax.cache import KVCache, VisualBank
from vkq_jax.dense import DenseTensor
from vkq_jax.text_bank import TextBank

attend = functools.partial(mosaic_gpu.attend_cache, launch=emulated_launch)

SIGNS = SignCodes(scale_bits=8)
BIASED = SignCodes(scale_bits=16, gamma=0.5, beta=0.25, rotation=None)
ROTATED = dataclasses.replace(BIASED, rotation="hadamard")
LEVELS = LevelCodes()
CODES = {
    "levels": KVQuantConfig(LEVELS, LEVELS),
    "levels in groups": KVQuantConfig(LevelCodes(group_size=512), LevelCodes(group_size=256)),
    "signs": KVQuantConfig(SIGNS, SIGNS),
    "signs, 16-bit scales, score bias": KVQuantConfig(BIASED, BIASED),
    "signs and levels": KVQuantConfig(SIGNS, LevelCodes(group_size=256)),
    "dense": vkq_jax.presets["none"],
    "levels, calibrated": vkq_jax.presets["calibquant-1bit"],
    "signs, calibrated": KVQuantConfig(BIASED, SIGNS, ScoreCalibration(tau1=0.5, tau2=1.5)),
    "rotated signs, score bias, calibrated": KVQuantConfig(
        ROTATED, SIGNS, ScoreCalibration(tau1=0.5, tau2=1.5)
    ),
    "groups, calibrated": KVQuantConfig(
        LevelCodes(group_size=256), SIGNS, ScoreCalibration(tau1=-0.5)
    ),
    "two bits": KVQuantConfig(LevelCodes(bits=2), LevelCodes(bits=2)),
    "four bits and signs": KVQuantConfig(LevelCodes(bits=4), SIGNS),
    "levels and four bits, calibrated": KVQuantConfig(
        LEVELS, LevelCodes(bits=4), ScoreCalibration()
    ),
    "levels and signs": KVQuantConfig(LevelCodes(group_size=256), SIGNS),
    "two bits and one, in groups": KVQuantConfig(
        LevelCodes(bits=2, group_size=256), LevelCodes(group_size=512), ScoreCalibration()
    ),
}
# head_dim, query heads per KV head, bank, tuning
SHAPES = {
    "one query head": (128, 1, (700, (700, 33)), TuningConfig(4, 2)),
    "four query heads, split": (128, 4, (1300, (1300, 0)), TuningConfig(8, 4, 2, queries=4)),
    "seven query heads, small heads": (64, 7, (600, (1, 513)), TuningConfig(4, 1, queries=3)),
    "seven query heads": (128, 7, (700, (700, 257)), TuningConfig(4, 2, queries=7)),
    "eight query heads, small heads": (64, 8, (600, (513, 77)), TuningConfig(4, 4, queries=8)),
    "one query head, small heads": (64, 1, (256, (256, 255)), None),
    "one query head, 96 channels": (96, 1, (600, (600, 33)), TuningConfig(4, 2)),
    "three query heads, 80 channels": (80, 3, (300, (300, 0)), TuningConfig(4, 1, 2, queries=3)),
    "one query head, 256 channels": (256, 1, (600, (600, 33)), TuningConfig(4, 2)),
    "four query heads, 256 channels, split": (
        256,
        4,
        (600, (600, 0)),
        TuningConfig(4, 2, 2, queries=4),
    ),
    "seven query heads, 256 channels": (256, 7, (300, (300, 257)), None),
    "four query heads, 160 channels": (160, 4, (300, (300, 33)), TuningConfig(4, 2, queries=4)),
    "one query head, 160 channels": (160, 1, (300, (300, 77)), TuningConfig(4, 1, 2)),
}


def layer_of(shape, codes, **changes):
    head_dim, per_kv_head, visual, tuning = SHAPES[shape]
    if any(getattr(side, "group_size", None) for side in (CODES[codes].key, CODES[codes].value)):
        tuning = tuning and dataclasses.replace(tuning, queries=1)
    shape = Shape(head_dim=head_dim, num_heads=2 * per_kv_head, visual=(visual,), **changes)
    return *random_layer(shape, CODES[codes]), tuning


def stacked(layer, num_layers, index=1):
    """A cache of several layers, that layer among others; its text in bfloat16."""

    def stack(x):
        other = jnp.zeros_like(x)
        return jnp.stack([x if i == index else other for i in range(num_layers)])

    text = TextBank(
        stack(layer.text.key.astype(jnp.bfloat16)),
        stack(layer.text.value.astype(jnp.bfloat16)),
        layer.text.length,
    )
    banks = []
    for bank in map(pallas_kernels.tile, layer.visual):
        key, value = bank.key, bank.value
        if isinstance(key, DenseTensor):
            key, value = (DenseTensor(x.values.astype(jnp.bfloat16)) for x in (key, value))
        banks.append(VisualBank(*jax.tree.map(stack, (key, value)), bank.length))
    none = jnp.zeros_like(layer.text.length)
    return KVCache(
        tuple(banks),
        text,
        position=none,
        calibration_skipped=none,
        quant=layer.quant,
        score_map=jax.tree.map(stack, layer.score_map),
    )


def check(query, layer, tuning=None, soft_cap=None, starts=None):
    # Compiled as a whole: alone, a new shape's operations are a hundred programs.
    fast = functools.partial(attend, tuning=tuning, logits_soft_cap=soft_cap)
    oracle = functools.partial(vkq_jax.reference.attend_cache, logits_soft_cap=soft_cap)
    got, expected = (jax.jit(run)(query, layer, starts=starts) for run in (fast, oracle))
    assert np.isfinite(got.output).all()
    assert relative_error(got.output, expected.output) < 3e-4
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=3e-5, atol=3e-4)
    np.testing.assert_array_equal(got.calibration_skipped, expected.calibration_skipped)


# Every pair of codes at each head_dim; every shape with one pair of each kind.
CASES = [
    (shape, codes, None)
    for shape in ("one query head", "four query heads, split", "seven query heads, small heads")
    for codes in CODES
    if codes != "dense"
]
CASES += [("one query head, small heads", "signs", None)]
CASES += [
    (shape, codes, None)
    for shape in ("seven query heads", "eight query heads, small heads")
    for codes in ("signs", "levels", "signs, 16-bit scales, score bias")
]
CASES += [
    (shape, codes, None)
    for shape in ("one query head, 96 channels", "three query heads, 80 channels")
    for codes in (
        "signs",
        "signs, 16-bit scales, score bias",
        "rotated signs, score bias, calibrated",
        "levels in groups",
        "two bits",
        "levels and signs",
    )
]
CASES += [
    (shape, codes, None)
    for shape in ("one query head, 256 channels", "four query heads, 256 channels, split")
    for codes in (
        "signs",
        "rotated signs, score bias, calibrated",
        "levels in groups",
        "two bits",
        "levels and four bits, calibrated",
    )
]
CASES += [
    ("seven query heads, 256 channels", "signs, 16-bit scales, score bias", None),
    ("four query heads, 160 channels", "rotated signs, score bias, calibrated", None),
    ("one query head, 160 channels", "levels and signs", None),
]
CASES += [
    ("one query head, small heads", "signs", 0.1),  # powers overflow
    ("one query head, 96 channels", "signs", 5.0),
    ("one query head", "levels in groups", 5.0),
    ("one query head", "signs, 16-bit scales, score bias", 50.0),
    ("four query heads, split", "levels", 50.0),
    ("seven query heads, small heads", "four bits and signs", 5.0),
    ("eight query heads, small heads", "signs, 16-bit scales, score bias", 5.0),
]


@pytest.mark.parametrize(("shape", "codes", "soft_cap"), CASES)
def test_equals_the_oracle(shape, codes, soft_cap):
    check(*layer_of(shape, codes), soft_cap=soft_cap)


@pytest.mark.parametrize(
    ("head_dim", "per_kv_head", "codes", "tuning", "soft_cap"),
    [
        (128, 1, "signs", TuningConfig(8, 2, 2), None),
        (128, 4, "signs", TuningConfig(4, 2, queries=4), None),
        (64, 3, "levels in groups", TuningConfig(4, 4), None),
        (128, 7, "dense", TuningConfig(8, 4, 2, queries=4), None),
        (128, 4, "signs", TuningConfig(4, 2, queries=6), None),
        (64, 3, "dense", TuningConfig(4, 4, queries=7), None),
        (64, 2, "dense", TuningConfig(4, 4, queries=2), None),
        (64, 1, "signs", TuningConfig(4, 4), 5.0),
        (64, 2, "signs", TuningConfig(4, 4, queries=2), 50.0),
        (64, 2, "dense", TuningConfig(4, 4, queries=2), 5.0),
        (96, 1, "signs", TuningConfig(8, 2, 2), None),
        (80, 2, "signs and levels", TuningConfig(4, 4), 5.0),
        (256, 4, "signs", TuningConfig(8, 2, queries=4), None),
        (256, 1, "two bits", TuningConfig(4, 2, 2), 5.0),
        (160, 1, "signs", TuningConfig(4, 4), None),
    ],
)
def test_a_layer_of_a_cache_with_its_text(head_dim, per_kv_head, codes, tuning, soft_cap):
    """Packed (or dense) bank and text bank for several query positions.

    In one launch, but for other heads than of 64 or 128 channels.
    """
    shape = Shape(
        head_dim=head_dim,
        num_heads=2 * per_kv_head,
        num_queries=3,
        cache_length=45,
        text=(2, 45),
        visual=((700, (700, 33)),),
    )
    query, layer = random_layer(shape, CODES[codes])
    cache = stacked(layer, 3)
    run = functools.partial(
        mosaic_gpu.attend_layer, launch=emulated_launch, tuning=tuning, logits_soft_cap=soft_cap
    )
    got = jax.jit(run)(query, cache, 1)
    expected = vkq_jax.reference.attend_cache(query, cache.layer(1), logits_soft_cap=soft_cap)
    assert relative_error(got.output, expected.output) < 3e-4
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=3e-5, atol=3e-4)


WINDOWS = [
    # One query a team: groups whose chunks begin inside a share, tails of blocks, other heads.
    (128, 1, "signs", TuningConfig(4, 2), None),
    (64, 3, "levels in groups", TuningConfig(4, 4), None),
    (128, 1, "groups, calibrated", TuningConfig(8, 2, 2), None),
    (128, 1, "groups, calibrated", TuningConfig(8, 4), None),
    (64, 1, "signs, 16-bit scales, score bias", TuningConfig(4, 4), 5.0),
    (96, 2, "rotated signs, score bias, calibrated", TuningConfig(4, 2), None),
    # Several, with starts of their own; two sets of them.
    (128, 4, "signs", TuningConfig(8, 4, 2, queries=4), None),
    (64, 4, "levels", TuningConfig(4, 2, queries=4), 50.0),
    (128, 4, "signs, calibrated", TuningConfig(8, 4, queries=8), None),
    (64, 3, "four bits and signs", TuningConfig(4, 4, queries=7), None),
    (256, 4, "levels and four bits, calibrated", TuningConfig(8, 2, queries=4), None),
    # Dense.
    (128, 7, "dense", TuningConfig(8, 4, 2, queries=4), None),
    (64, 3, "dense", TuningConfig(4, 4, queries=7), 5.0),
]


@pytest.mark.parametrize(("head_dim", "per_kv_head", "codes", "tuning", "soft_cap"), WINDOWS)
def test_a_window_over_a_layer_of_a_cache(head_dim, per_kv_head, codes, tuning, soft_cap):
    """Each of three query positions sees each bank from a position of its own on."""
    shape = Shape(
        head_dim=head_dim,
        num_heads=2 * per_kv_head,
        num_queries=3,
        cache_length=45,
        text=(20, 45),
        visual=((700, (700, 300)),),
    )
    query, layer = random_layer(shape, CODES[codes])
    cache = stacked(layer, 2)
    # Whole blocks hidden; starts inside blocks, at their edges and at the end: nothing is seen.
    of_visual = jnp.asarray([[520, 700, 512], [300, 256, 0]], jnp.int32)
    of_text = jnp.asarray([[16, 0, 17], [33, 32, 44]], jnp.int32)
    options = {"starts": vkq_jax.Starts((of_visual,), of_text), "logits_soft_cap": soft_cap}
    run = functools.partial(mosaic_gpu.attend_layer, launch=emulated_launch, tuning=tuning)
    got = run(query, cache, 1, **options)
    expected = vkq_jax.reference.attend_cache(query, cache.layer(1), **options)
    assert np.isfinite(got.output).all()
    assert relative_error(got.output, expected.output) < 3e-4
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=3e-5, atol=3e-4)
    np.testing.assert_array_equal(got.calibration_skipped, expected.calibration_skipped)


def test_hidden_blocks_are_not_read():
    """NaN in their scales would show, in the words' place none can be."""
    query, layer, tuning = layer_of("four query heads, split", "signs, 16-bit scales, score bias")
    bank = pallas_kernels.tile(layer.visual[0])
    starts = vkq_jax.Starts((jnp.asarray([[600], [0]], jnp.int32),), jnp.zeros((2, 1), jnp.int32))
    scale = bank.value.token_scale.at[0, :, :2].set(0x7FC07FC0)
    broken = dataclasses.replace(bank, value=dataclasses.replace(bank.value, token_scale=scale))
    first, second = (
        attend(query, dataclasses.replace(layer, visual=(b,)), starts=starts, tuning=tuning).output
        for b in (bank, broken)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.isfinite(attend(query, dataclasses.replace(layer, visual=(broken,))).output).all()


def recorded(specs):
    """An emulated launch that notes its specs."""

    def launch(spec, operands):
        specs.append(spec)
        return emulated_launch(spec, operands)

    return launch


@pytest.mark.parametrize("codes", ["levels, calibrated", "groups, calibrated"])
def test_a_calibration_of_one_query_takes_one_launch(codes):
    """Mapped query axes add queries of the same bank: each has a team of its own."""
    shape = Shape(head_dim=64, num_heads=2, visual=((700, (700, 33)),))
    query, layer = random_layer(shape, CODES[codes])
    specs, tuning = [], TuningConfig(8, 4)
    run = functools.partial(mosaic_gpu.attend_cache, launch=recorded(specs), tuning=tuning)
    queries = jnp.stack([query, 2 * query, -query])
    got = jax.vmap(run, (0, None))(queries, layer)
    assert all(spec.task == "attention" for spec in specs)  # as traced, and as mapped
    assert all(spec.calibration == CODES[codes].calibration for spec in specs)
    assert (specs[-1].queries, specs[-1].tuning.queries) == (3, 1)
    for number, one in enumerate(queries):
        expected = vkq_jax.reference.attend_cache(one, layer)
        assert relative_error(got.output[number], expected.output) < 3e-4
        np.testing.assert_array_equal(got.calibration_skipped[number], expected.calibration_skipped)


@pytest.mark.parametrize("tau1", [0.0, 4.0])
def test_a_calibration_of_one_visible_token(tau1):
    """It has no range: the guard leaves it, also where the map would widen one."""
    quant = KVQuantConfig(LEVELS, LEVELS, ScoreCalibration(tau1=tau1, tau2=3.0))
    shape = Shape(head_dim=64, num_heads=2, visual=((300, (300, 1)),))
    check(*random_layer(shape, quant), tuning=TuningConfig(8, 4))


def test_scores_are_kept_where_they_fit():
    """A long bank asks for a wide team; several queries, splits and the longest do not fit."""
    levels = Coding()

    def kept(positions, **tuning):
        return keeping_tuning(TuningConfig(16, **tuning), Packed(positions, levels, levels), 128)

    assert kept(2304, team=1) == TuningConfig(16, team=1)
    assert kept(32768, team=2) == TuningConfig(16, team=16)
    assert kept(65536, team=2) is None
    assert kept(2304, team=4, splits=2) is None
    assert kept(2304, team=4, queries=4) is None


@pytest.mark.parametrize(
    ("head_dim", "per_kv_head", "codes", "tuning"),
    [
        (128, 1, "signs, 16-bit scales, score bias", TuningConfig(4, 2)),
        (64, 3, "levels, calibrated", TuningConfig(4, 2, 2, queries=4)),
        (128, 8, "signs", TuningConfig(8, 4, queries=8)),
    ],
)
@pytest.mark.parametrize("text", [jnp.bfloat16, jnp.float32, jnp.int8])
def test_a_static_score_map_costs_no_launch(head_dim, per_kv_head, codes, tuning, text):
    """The layer is traced, queries have several positions; text for XLA is left alone."""
    shape = Shape(
        head_dim=head_dim, num_heads=2 * per_kv_head, num_queries=2, visual=((300, (300, 33)),)
    )
    query, layer = random_layer(shape, CODES[codes])
    cache = stacked(with_score_map(layer, shape.num_heads), 3)
    if text == jnp.int8:
        changed = cache.text.in_8_bits()
    else:
        changed = cache.text.map_arrays(lambda x: x.astype(text))
    cache = dataclasses.replace(cache, text=changed)
    specs = []
    run = functools.partial(mosaic_gpu.attend_layer, launch=recorded(specs), tuning=tuning)
    got = jax.jit(run)(query, cache, 1)
    (spec,) = specs
    assert spec.maps_scores
    expected = vkq_jax.reference.attend_cache(query, cache.layer(1))
    assert relative_error(got.output, expected.output) < 3e-4
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=3e-5, atol=3e-4)
    assert not got.calibration_skipped.any()


def test_a_querys_own_static_map_is_the_calibration_of_its_step():
    """The same slope and shift: found by the kernel at its step, or given."""
    shape = Shape(head_dim=64, batch=1, text=(5,), visual=((300, (33,)), (256, (256,))))
    query, layer = random_layer(shape, CODES["levels, calibrated"])
    rows = to_kv_heads(query * 64**-0.5, 2)
    banks = [
        VisualBank(*jax.tree.map(lambda x: x[None], (bank.key, bank.value)), bank.length)
        for bank in map(pallas_kernels.tile, layer.visual)
    ]
    found = [score_range(rows, bank, jnp.int32(0), emulated_launch) for bank in banks]
    own, _ = vkq_jax.calibration.score_map(
        functools.reduce(jnp.minimum, [lowest for lowest, _ in found]),
        functools.reduce(jnp.maximum, [highest for _, highest in found]),
        layer.quant.calibration,
    )
    own = jax.tree.map(lambda x: from_kv_heads(x[..., None], 1)[0, 0, :, 0], own)
    got, expected = attend(query, dataclasses.replace(layer, score_map=own)), attend(query, layer)
    np.testing.assert_array_equal(got.output, expected.output)
    np.testing.assert_array_equal(got.logsumexp, expected.logsumexp)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_a_text_bank_without_room(head_dim):
    shape = Shape(
        head_dim=head_dim, num_heads=2, cache_length=0, text=(0, 0), visual=((70, (70, 0)),)
    )
    query, layer = random_layer(shape, CODES["signs"])
    cache = stacked(layer, 2)
    got = mosaic_gpu.attend_layer(query, cache, 1, launch=emulated_launch)
    expected = vkq_jax.reference.attend_cache(query, cache.layer(1))
    assert relative_error(got.output, expected.output) < 3e-4
    assert not got.output[1].any()


def test_a_cache_without_room():
    layer = random_layer(Shape(head_dim=64, cache_length=0, text=(0, 0)), CODES["signs"])[1]
    empty = dataclasses.replace(stacked(layer, 1), visual=())
    assert mosaic_gpu.unsupported_reason(empty) == "the cache has no room for anything"


@pytest.mark.parametrize("head_dim", [64, 96])
def test_two_banks_and_several_queries(head_dim):
    shape = Shape(
        head_dim=head_dim, num_queries=3, visual=((300, (300, 1)), (256, (0, 256))), num_heads=2
    )
    check(*random_layer(shape, CODES["signs"]))
    check(*random_layer(shape, CODES["signs"]), soft_cap=5.0)
    # One range over both.
    query, layer = random_layer(shape, CODES["rotated signs, score bias, calibrated"])
    check(query, layer)
    check(query, layer, starts=random_starts(query, layer))


@pytest.mark.parametrize("codes", ["levels", "signs"])
@pytest.mark.parametrize("case", ["peaked", "sink", "one channel rules", "constant", "huge"])
@pytest.mark.parametrize("heads", [1, 4, 8])
def test_hard_inputs(case, codes, heads):
    rng = np.random.default_rng(1)
    key, value = rng.normal(size=(2, 2, 1, 600, 128)).astype(np.float32)
    query = rng.normal(size=(2, 1, heads, 128)).astype(np.float32)
    match case:
        case "peaked":
            query *= 8
        case "sink":
            key[:, :, 3] = 4 * query[:, :, 0]
        case "one channel rules":
            key[..., 5] *= 300
            query[..., 5] /= 30
        case "constant":
            key[:], value[..., :64] = 1.5, -2.0
        case "huge":
            key *= 1e4
            query *= 1e-4
            value *= 1e6
    text = random_layer(Shape(head_dim=128, num_heads=1, num_kv_heads=1), CODES[codes])[1].text
    text = dataclasses.replace(text, length=jnp.zeros(2, jnp.int32))
    bank = vkq_jax.cache.VisualBank(
        vkq_jax.quantize(jnp.asarray(key), CODES[codes].key),
        vkq_jax.quantize(jnp.asarray(value), CODES[codes].value),
        jnp.asarray([600, 257], jnp.int32),
    )
    layer = vkq_jax.cache.LayerCache((bank,), text, quant=CODES[codes])
    check(jnp.asarray(query), layer)


@pytest.mark.parametrize(("heads", "saved"), [(4, 1 / 2), (8, 1 / 3)])
def test_flat_queries_are_shortened(heads, saved, monkeypatch):
    """Without their lowest digits they take fewer products; steep ones keep them."""
    calls = []
    product = EmulatedOperations.mma_u8_s8

    def counted(self, *operands):
        calls.append(1)
        return product(self, *operands)

    monkeypatch.setattr(EmulatedOperations, "mma_u8_s8", counted)

    def products(query, layer):
        calls.clear()
        check(query, layer)
        return len(calls)

    shape = Shape(head_dim=128, num_heads=heads, num_kv_heads=1, visual=((600, (600, 257)),))
    query, layer = random_layer(shape, CODES["levels"])
    assert products(query / 16, layer) == pytest.approx((1 - saved) * products(8 * query, layer))
    query, layer = random_layer(shape, CODES["signs"])
    assert products(query / 16, layer) == products(8 * query, layer)


def test_shortened_flat_queries_give_nearly_the_same(monkeypatch):
    query, layer, tuning = layer_of("eight query heads, small heads", "levels")
    outputs = []
    for allowed in (0.0, np.inf):
        monkeypatch.setattr(packed_s8, "_LOST_VARIANCE", allowed)
        outputs.append(np.asarray(attend(query / 16, layer, tuning=tuning).output))
    assert 1e-7 < relative_error(*outputs) < 1e-4


def test_what_lies_behind_the_length_changes_nothing():
    query, layer, tuning = layer_of("one query head", "signs")
    bank = pallas_kernels.tile(layer.visual[0])
    row, behind = 1, slice(256 * 4, None)  # 33 positions are visible: part of the first block
    other = dataclasses.replace(
        bank,
        key=dataclasses.replace(
            bank.key, packed=bank.key.packed.at[row, :, behind].set(0xFFFFFFFF)
        ),
        value=dataclasses.replace(
            bank.value, token_scale=bank.value.token_scale.at[row, :, 1:].set(0xFFFFFFFF)
        ),
    )
    first, second = (
        attend(query, dataclasses.replace(layer, visual=(b,)), tuning=tuning).output
        for b in (bank, other)
    )
    np.testing.assert_array_equal(first, second)


def test_a_query_that_sees_nothing_gives_zero():
    shape = Shape(head_dim=64, text=(0, 3), visual=((8, (0, 8)),))
    query, layer = random_layer(shape, CODES["signs"])
    attended = attend(query, layer)
    assert not attended.output[0].any()
    assert np.isneginf(attended.logsumexp[0]).all()
    assert np.isfinite(attended.output).all()


@pytest.mark.parametrize(
    ("head_dim", "codes"),
    [
        (64, "levels"),
        (64, "levels, calibrated"),
        (64, "levels, static map"),
        (96, "signs"),
        (96, "signs, static map"),
    ],
)
def test_vmap_folds_the_axis_into_one_launch(head_dim, codes):
    codes, *static = codes.split(", static map")
    query, layer = random_layer(Shape(head_dim=head_dim, num_heads=2), CODES[codes])
    other = random_layer(Shape(head_dim=head_dim, num_heads=2), CODES[codes], seed=1)[1]
    if static:
        layer, other = (with_score_map(x, 2) for x in (layer, other))
    queries, layers = (
        jnp.stack([query, -query]),
        jax.tree.map(lambda *x: jnp.stack(x), layer, other),
    )
    shapes = []

    def counted(spec, operands):
        shapes.append((spec.outer, spec.batch, spec.queries))
        return emulated_launch(spec, operands)

    def run(q, c):
        return mosaic_gpu.attend_cache(q, c, launch=counted).output

    one_by_one = jnp.stack([run(queries[i], c) for i, c in enumerate((layer, other))])
    shapes.clear()
    np.testing.assert_allclose(jax.vmap(run)(queries, layers), one_by_one, rtol=1e-5, atol=1e-5)
    assert shapes[-1] == (2, 2, 1)
    shapes.clear()
    got = jax.vmap(run, in_axes=(0, None))(queries, layer)
    assert relative_error(got[0], one_by_one[0]) < 3e-4  # other instructions, for two queries
    assert shapes[-1] == (1, 2, 2)


@pytest.mark.parametrize("codes", ["signs", "levels, calibrated"])
def test_vmap_over_starts(codes):
    """Mapped queries with mapped starts over one bank, and over mapped ones."""
    shape = Shape(head_dim=64, num_heads=2, num_queries=2, visual=((300, (300, 270)),))
    (query, layer), (_, other) = (random_layer(shape, CODES[codes], seed) for seed in range(2))
    both = [random_starts(query, layer, seed) for seed in range(2)]
    starts, layers = (jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (both, (layer, other)))

    def run(layer, starts):
        return attend(query, layer, starts=starts).output

    for bank_axis, mapped in ((None, layer), (0, layers)):
        got = jax.vmap(run, in_axes=(bank_axis, 0))(mapped, starts)
        for i, one in enumerate((layer, layer if bank_axis is None else other)):
            assert relative_error(got[i], run(one, both[i])) < 3e-4


@pytest.mark.parametrize(
    ("shape", "soft_cap", "windowed"),
    [
        ("one query head, small heads", None, False),
        ("one query head, small heads", 5.0, True),
        ("three query heads, 80 channels", None, False),
    ],
)
@pytest.mark.ci
def test_gradients_equal_the_oracles(shape, soft_cap, windowed):
    """By queries, text and, where there is no cap, a score map."""
    query, layer, _ = layer_of(shape, "signs")
    if soft_cap is None:
        layer = with_score_map(layer, query.shape[2])
    options = {
        "starts": random_starts(query, layer) if windowed else None,
        "logits_soft_cap": soft_cap,
    }

    def loss(inputs, attend):
        query, text_key, text_value, score_map = inputs
        text = dataclasses.replace(layer.text, key=text_key, value=text_value)
        changed = dataclasses.replace(layer, text=text, score_map=score_map)
        return jnp.sum(jnp.sin(attend(query, changed, **options).output))

    inputs = (query, layer.text.key, layer.text.value, layer.score_map)
    got = jax.grad(loss)(inputs, attend)
    expected = jax.grad(loss)(inputs, vkq_jax.reference.attend_cache)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert relative_error(g, e) < 1e-3


# Without a GPU: what the backends have in common, lowering, ptxas


def test_every_instruction_is_emulated():
    names = {name for name in vars(Operations) if not name.startswith("_")}
    assert names <= vars(EmulatedOperations).keys()


LAUNCHES = {
    "levels": (128, 1, "levels", TuningConfig(8, 4)),
    "levels in groups": (128, 4, "levels in groups", TuningConfig(4, 4, 2)),
    "signs": (128, 1, "signs", TuningConfig(8, 4)),
    "signs, four queries": (128, 4, "signs", TuningConfig(8, 4, 4, queries=4)),
    "signs, eight queries": (128, 8, "signs", TuningConfig(12, 4, queries=8)),
    "four bits": (128, 2, "four bits and signs", TuningConfig(8, 4, queries=2)),
    "calibrated": (128, 1, "levels, calibrated", TuningConfig(8, 4, 2)),
    "calibrated in the launch": (128, 1, "groups, calibrated", TuningConfig(8, 4)),
    "calibrated, eight queries": (128, 8, "signs, calibrated", TuningConfig(8, 8, 2, queries=8)),
    "small heads": (64, 3, "signs, 16-bit scales, score bias", TuningConfig(4, 2, queries=3)),
    "dense": (128, 4, "dense", TuningConfig(8, 4, 2, queries=4)),
    "dense, small heads": (64, 1, "dense", TuningConfig(4, 4)),
    "96 channels": (96, 1, "signs", TuningConfig(8, 4)),
    "256 channels": (256, 1, "signs", TuningConfig(16, 4)),
    "256 channels, four queries": (256, 4, "signs", TuningConfig(8, 4, 2, queries=4)),
}
# With a cap the body differs in its scores only, with a window in these and in what it loads.
LAUNCH_CASES = [(name, None, False) for name in LAUNCHES]
LAUNCH_CASES += [
    (name, 50.0, False) for name in ("levels in groups", "signs, eight queries", "96 channels")
]
LAUNCH_CASES += [
    (name, None, True)
    for name in (
        "levels in groups",
        "signs, four queries",
        "calibrated in the launch",
        "calibrated, eight queries",
        "dense",
        "256 channels",
    )
]


def launches_of(name, soft_cap=None, windowed=False):
    """Specs and their operands' shapes, text bank in bfloat16 and two layers included."""
    head_dim, per_kv_head, codes, tuning = LAUNCHES[name]
    shape = Shape(head_dim=head_dim, num_heads=2 * per_kv_head, visual=((600, (600, 3)),))
    query, layer = random_layer(shape, CODES[codes])
    found = []

    def launch(spec, operands):
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in operands.items()}
        found.append((spec, shapes))
        return tuple(jnp.zeros(x.shape, x.dtype) for x in program_of(spec).results.values())

    cache = stacked(layer, 2)
    options = {"launch": launch, "tuning": tuning, "logits_soft_cap": soft_cap}
    if windowed:
        options["starts"] = random_starts(query, layer)
    jax.eval_shape(lambda: mosaic_gpu.attend_layer(query, cache, 1, **options))
    return found


@pytest.mark.parametrize(("name", "soft_cap", "windowed"), LAUNCH_CASES)
def test_lowers_to_cuda(name, soft_cap, windowed):
    for spec, operands in launches_of(name, soft_cap, windowed):
        assert spec.windowed == any("start" in operand for operand in operands) == windowed
        assert "mosaic_gpu" in lower_to_cuda(program_of(spec), operands)


@needs_ptxas
@pytest.mark.parametrize(("name", "soft_cap", "windowed"), LAUNCH_CASES)
def test_ptxas_accepts_every_instruction(name, soft_cap, windowed, tmp_path):
    for spec, operands in launches_of(name, soft_cap, windowed):
        assert "Used" in ptxas(program_of(spec), operands, tmp_path)


# Which implementation a call takes


def test_the_choice_is_visible():
    layer = random_layer(Shape(head_dim=64), CODES["signs"])[1]
    if jax.default_backend() == "cpu":
        assert pallas_kernels.choose_implementation(None, layer) == "xla"
        assert "needs an NVIDIA GPU" in pallas_kernels.explain(layer)
        with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
            pallas_kernels.choose_implementation("mosaic_gpu", layer)


def test_what_the_kernel_does_not_cover_is_said():
    def reason(**changes):
        shape = Shape(**{"head_dim": 64, "visual": ((300, (300, 3)),)} | changes)
        return lambda quant: mosaic_gpu.unsupported_reason(random_layer(shape, quant)[1])

    signs = CODES["signs"]
    assert reason()(signs) is None
    assert "dense banks in float32" in reason(visual=())(signs)
    assert reason(head_dim=80)(signs) is None
    assert reason(head_dim=160)(signs) is None
    assert reason(head_dim=257)(signs) == "head_dim 257 is above 256"
    assert "8-bit" in reason()(KVQuantConfig(LevelCodes(bits=8), LEVELS))
    assert "group of 64" in reason()(KVQuantConfig(LevelCodes(group_size=64), LEVELS))
    assert "per token" in reason()(vkq_jax.presets["quantile-1bit"])
    assert "1.6-bit" in reason()(KVQuantConfig(LevelCodes(bits=1.6), LEVELS))
    assert "rotated channels" in reason()(KVQuantConfig(LevelCodes(rotation="hadamard"), LEVELS))
    assert "MixedTensor is neither" in reason()(vkq_jax.presets["vidkv-1.5bit"])
    assert reason()(KVQuantConfig(SIGNS, SIGNS, ScoreCalibration())) is None
    mixed = stacked(random_layer(Shape(head_dim=64), vkq_jax.presets["none"])[1], 1)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (mixed.visual[0].key,))[0]
    bank = dataclasses.replace(mixed.visual[0], key=wide)
    reason = mosaic_gpu.unsupported_reason(dataclasses.replace(mixed, visual=(bank,)))
    assert reason == "dense banks in float32, not bfloat16"
    for head_dim in (80, 256):
        other = stacked(random_layer(Shape(head_dim=head_dim), vkq_jax.presets["none"])[1], 1)
        for cache in (other, dataclasses.replace(other, visual=())):  # pictures, only text
            reason = mosaic_gpu.unsupported_reason(cache)
            assert reason == f"dense banks of head_dim {head_dim}, none of (64, 128)"
    query, layer = random_layer(Shape(head_dim=257), signs)
    with pytest.raises(NotImplementedError, match="head_dim 257"):
        mosaic_gpu.attend_cache(query, layer, launch=emulated_launch)


def test_a_soft_cap_together_with_calibration_is_not_covered(monkeypatch):
    query, layer = random_layer(Shape(head_dim=64), CODES["signs, calibrated"])
    reason = "logits soft-cap together with score calibration"
    with pytest.raises(NotImplementedError, match=reason):
        attend(query, layer, logits_soft_cap=50.0)
    only_text = dataclasses.replace(stacked(layer, 1), visual=())  # nothing to calibrate
    assert mosaic_gpu.unsupported_reason(only_text, 50.0) is None
    monkeypatch.setattr(mosaic_gpu, "device_reason", lambda: None)
    assert pallas_kernels.choose_implementation(None, layer) == "mosaic_gpu"
    assert pallas_kernels.choose_implementation(None, layer, 50.0) == "xla"
    assert f"mosaic_gpu: {reason}" in pallas_kernels.explain(layer, logits_soft_cap=50.0)
    with pytest.raises(NotImplementedError, match=f"'mosaic_gpu' does not apply here: {reason}"):
        pallas_kernels.decode_attention(
            query, layer, implementation="mosaic_gpu", logits_soft_cap=50.0
        )
    assert pallas_kernels.decode_attention(query, layer, logits_soft_cap=50.0).shape == query.shape


@pytest.mark.parametrize("heads", [1, 2, 7, 32, 512, 4096])
@pytest.mark.parametrize("queries", [1, 4, 7, 8, 30])
@pytest.mark.parametrize("positions", [1, 576, 2304, 32768])
@pytest.mark.parametrize("head_dim", [128, 256])
def test_a_tuning_fits_any_shape(heads, queries, positions, head_dim):
    packed = Packed(positions, Coding(), Coding())
    dense = () if head_dim == 256 else (("text", 100),)
    tuning = choose_tuning(heads, queries, head_dim, (packed,), dense)
    spec = KernelSpec(heads, 1, queries, head_dim, (packed,), dense, tuning=tuning)
    if head_dim == 256 and tuning.queries > 1:  # registers
        assert tuning.warps <= 8
        assert tuning.queries <= 4
    assert spec.grid * spec.block_teams >= spec.teams
    assert 4 * spec.shared_words <= 227 * 1024  # what a thread block of an H100 can have


@pytest.mark.parametrize(
    ("heads", "queries", "positions", "tuning"),
    [
        (16 * 32, 1, 2304, TuningConfig(4, 2)),
        (128 * 8, 4, 3328, TuningConfig(16, 2, 1, 4)),  # 128 thread blocks: one round
        (133 * 8, 4, 3328, TuningConfig(4, 2, 1, 4)),  # 133 would be two
        (16 * 4, 8, 32768, TuningConfig(8, 8, 2, 8)),
        (16 * 4, 8, 131072, TuningConfig(8, 8, 2, 8)),
    ],
)
def test_tunings_that_were_measured(heads, queries, positions, tuning):
    packed = Packed(positions, Coding(), Coding())
    assert choose_tuning(heads, queries, 128, (packed,), (("text", 64),)) == tuning


def test_explain_says_how_the_work_is_divided():
    query, layer = random_layer(Shape(head_dim=128, num_heads=8, num_queries=2), CODES["signs"])
    text = pallas_kernels.explain(stacked(layer, 3), jax.ShapeDtypeStruct(query.shape, query.dtype))
    assert "one launch over 70 packed, 9 dense (text)" in text
    assert "to a team of 8 queries" in text
    plain = pallas_kernels.explain(layer)
    assert plain.count("\n") == 2


def test_explain_says_what_score_calibration_costs():
    query, layer = random_layer(Shape(head_dim=128, num_heads=8), CODES["levels, calibrated"])
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    each_step = pallas_kernels.explain(stacked(layer, 3), shape)
    assert "score calibration: one more launch before" in each_step
    alone = Shape(head_dim=128, num_heads=2)
    query, alone = random_layer(alone, CODES["levels, calibrated"])
    shape_alone = jax.ShapeDtypeStruct(query.shape, query.dtype)
    in_launch = pallas_kernels.explain(stacked(alone, 3), shape_alone)
    assert "score calibration: in the launch, which keeps all scores" in in_launch
    static = pallas_kernels.explain(stacked(with_score_map(layer, 8), 3), shape)
    assert "score calibration: static, in the query, no launch of its own" in static
    assert "one more launch" not in static


@pytest.mark.parametrize(
    ("head_dim", "rotated_and_stored"),
    [
        (96, ["rotation of queries: by xla", "head_dim 96: stored with zeros, as 128"]),
        (160, ["rotation of queries: by xla", "head_dim 160: stored with zeros, as 256"]),
        (256, []),
    ],
)
def test_explain_says_what_happens_beside_the_launches_of_other_heads(head_dim, rotated_and_stored):
    query, layer = random_layer(Shape(head_dim=head_dim), CODES["signs and levels"])
    shapes = jax.eval_shape(lambda: (stacked(layer, 3), query))  # no arrays are needed
    text = pallas_kernels.explain(*shapes)
    assert [line.removeprefix("mosaic_gpu: ") for line in text.splitlines()[4:]] == [
        *rotated_and_stored,
        "text bank by xla, joined by its log-sum-exp: "
        f"dense banks of head_dim {head_dim}, none of (64, 128)",
    ]
    assert "one launch over 70 packed:" in text.splitlines()[3]


@pytest.mark.ci
def test_shards_over_batch_and_heads(tmp_path):
    """`shard_map` needs two devices, which a process has from its start."""
    script = tmp_path / "shards.py"
    script.write_text(
        """
import functools, jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.body import packed_s8
from pallas_kernels.attention.launch import emulated_launch
from tests.pallas_kernels.test_kernel import CODES, stacked
from tests.support.caches import Shape, random_layer
shape = Shape(head_dim=64, num_heads=4, visual=((300, (300, 33)),))
query, layer = random_layer(shape, CODES["signs"])
cache = stacked(layer, 2)
run = functools.partial(mosaic_gpu.attend_layer, launch=emulated_launch)
def attend(query, cache):
    return run(query, cache, 1).output
expected = jax.jit(attend)(query, cache)
mesh = jax.make_mesh((2,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,))
per_sequence = jax.tree.map(lambda x: P("shard") if x.ndim == 1 else P(None, "shard"), cache)
per_head = jax.tree.map(lambda x: P() if x.ndim == 1 else P(None, None, "shard"), cache)
for query_spec, cache_spec in ((P("shard"), per_sequence), (P(None, None, "shard"), per_head)):
    sharded = jax.shard_map(
        attend, mesh=mesh, in_specs=(query_spec, cache_spec), out_specs=query_spec, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(sharded)(query, cache), expected, rtol=1e-5, atol=1e-5)
print("equal")
"""
    )
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    result = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip().endswith("equal"), result.stderr
