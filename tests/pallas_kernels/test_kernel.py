"""The fused kernel's body, emulated on the CPU, against the float32 oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.launch import emulated_launch
from tests.pallas_kernels.kernel_cases import (
    CODES,
    attend,
    check,
    layer_of,
    recorded,
    stacked,
)
from tests.support.caches import (
    Shape,
    oracle,
    random_layer,
    relative_error,
)

# Every pair of codes at each head_dim (at 64, which differs in its fragments, those that repeat
# others' parts with `-m ci`); every shape with one pair of each kind.
REPEATED = {"levels", "levels, calibrated", "signs, calibrated", "signs and levels", "two bits"}
REPEATED |= {"levels and four bits, calibrated", "levels and signs", "two bits and one, in groups"}
SMALL = "seven query heads, small heads"
CASES = [
    pytest.param(
        shape, codes, None, marks=[pytest.mark.ci] * (shape == SMALL and codes in REPEATED)
    )
    for shape in ("one query head", "four query heads, split", SMALL)
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
        (128, 1, "signs:text8", TuningConfig(8, 2, 2), None),
        (128, 4, "signs", TuningConfig(4, 2, queries=4), None),
        (64, 3, "levels in groups", TuningConfig(4, 4), None),
        (128, 7, "dense", TuningConfig(8, 4, 2, queries=4), None),
        (128, 4, "signs:text8", TuningConfig(4, 2, queries=6), None),
        (64, 3, "dense:text8", TuningConfig(4, 4, queries=7), None),
        (64, 2, "dense", TuningConfig(4, 4, queries=2), None),
        (64, 1, "signs:text8", TuningConfig(4, 4), 5.0),
        (64, 2, "signs", TuningConfig(4, 4, queries=2), 50.0),
        (64, 2, "dense", TuningConfig(4, 4, queries=2), 5.0),
        (96, 1, "signs:text8", TuningConfig(8, 2, 2), None),
        (80, 2, "signs and levels", TuningConfig(4, 4), 5.0),
        (256, 4, "signs", TuningConfig(8, 2, queries=4), None),
        (256, 1, "two bits", TuningConfig(4, 2, 2), 5.0),
        (160, 1, "signs", TuningConfig(4, 4), None),
    ],
)
def test_a_layer_of_a_cache_with_its_text(head_dim, per_kv_head, codes, tuning, soft_cap):
    """Packed (or dense) bank and text bank, in bfloat16 or 8 bits, for several query positions.

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
    codes, *text = codes.split(":")
    query, layer = random_layer(shape, CODES[codes])
    cache, specs = stacked(layer, 3, text_in_8_bits=bool(text)), []
    run = functools.partial(
        mosaic_gpu.attend_layer, launch=recorded(specs), tuning=tuning, logits_soft_cap=soft_cap
    )
    got = jax.jit(run)(query, cache, 1)
    in_launch = [bank for spec in specs for bank in spec.dense if bank.name == "text"]
    assert [bank.coded for bank in in_launch] == [bool(text)] * (head_dim in (64, 128))
    expected = oracle(query, cache.layer(1), logits_soft_cap=soft_cap)
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
    (128, 4, "signs:text8", TuningConfig(8, 4, 2, queries=4), None),
    (64, 4, "levels", TuningConfig(4, 2, queries=4), 50.0),
    (128, 4, "signs, calibrated", TuningConfig(8, 4, queries=8), None),
    (64, 3, "four bits and signs", TuningConfig(4, 4, queries=7), None),
    (256, 4, "levels and four bits, calibrated", TuningConfig(8, 2, queries=4), None),
    # Dense.
    (128, 7, "dense", TuningConfig(8, 4, 2, queries=4), None),
    (64, 3, "dense:text8", TuningConfig(4, 4, queries=7), 5.0),
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
    codes, *text = codes.split(":")
    query, layer = random_layer(shape, CODES[codes])
    cache = stacked(layer, 2, text_in_8_bits=bool(text))
    # Whole blocks hidden; starts inside blocks, at their edges and at the end: nothing is seen.
    of_visual = jnp.asarray([[520, 700, 512], [300, 256, 0]], jnp.int32)
    of_text = jnp.asarray([[16, 0, 17], [33, 32, 44]], jnp.int32)
    options = {"starts": vkq_jax.Starts((of_visual,), of_text), "logits_soft_cap": soft_cap}
    run = functools.partial(mosaic_gpu.attend_layer, launch=emulated_launch, tuning=tuning)
    got = run(query, cache, 1, **options)
    expected = oracle(query, cache.layer(1), **options)
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
