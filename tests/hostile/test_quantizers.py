"""Code families by class of values, against float64: what a table says has to be near what came.

Each value class is drawn by the seed; NaN and infinite elements, padding that holds anything, equal
elements, one token, none, subnormal numbers and the edge of float32 are among them.
"""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from vkq_jax import (
    MSE,
    Dense,
    DictionaryCodes,
    Granularity,
    LevelCodes,
    MeanMagnitude,
    MinMax,
    MixedCodes,
    Quantile,
    Shrink,
    SignCodes,
    dequantize,
    quantize,
)
from vkq_jax.bits.packing import TERNARY, highest_code
from vkq_jax.codes.groups import LARGEST

LARGEST_SIGN, LARGEST_TOKEN, LARGEST_SCALE = 2.0**100, 2.0**48, 6.2e4
TABLE_MAX = {"bfloat16": LARGEST, "float16": 65504.0, "float32": LARGEST}
RELATIVE = {"bfloat16": 2**-8, "float16": 2**-10, "float32": 2**-22}

VALUES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "offset": lambda rng, shape: 100.0 + rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(1.5, shape),
    "outlier channel": lambda rng, shape: (
        rng.normal(size=shape) * np.where(np.arange(shape[-1]) == 3, 1e4, 1.0)
    ),
    "equal": lambda rng, shape: np.full(shape, rng.normal()),
    "zeros": lambda rng, shape: np.zeros(shape),
    "two values": lambda rng, shape: rng.choice([-1.5, 2.5], shape),
    "small": lambda rng, shape: rng.normal(size=shape) * 1e-30,
    "beyond float16": lambda rng, shape: rng.normal(size=shape) * 1e6,
    "1e19": lambda rng, shape: rng.normal(size=shape) * 1e19,
    "1e38": lambda rng, shape: rng.choice([-1.0, 1.0, 0.5], shape) * 1e38,
    "greatest of float32": lambda rng, shape: rng.choice([-1.0, 1.0], shape) * 3.4028e38,
}

RULES = [MinMax(), Quantile(0.2), Quantile(0.0), Shrink(0.5), Shrink(3.0), MSE(), MeanMagnitude()]


def random_codes(rng):
    table_dtype = rng.choice(sorted(TABLE_MAX))
    match rng.randrange(6):
        case 0 | 1:
            return LevelCodes(
                bits=rng.choice([1, TERNARY, 2, 4, 8]),
                range_rule=rng.choice(RULES),
                rotation=rng.choice([None, None, "hadamard"]),
                granularity=rng.choice(list(Granularity)),
                group_size=rng.choice([None, 4, 8]),
                table_dtype=table_dtype,
            )
        case 2:
            return SignCodes(
                rotation=rng.choice(["hadamard", None]),
                gamma=rng.choice([0.0, 0.5, 1.0]),
                beta=rng.choice([0.0, 0.5]),
                scale_bits=rng.choice([8, 16]),
                centre=rng.choice(["mean", "median"]),
                group_size=rng.choice([None, 8]),
                table_dtype=table_dtype,
            )
        case 3:
            return DictionaryCodes(
                centres=rng.choice([1, 3]),
                smoothing=rng.choice([0.0, 0.5]),
                table_dtype=table_dtype,
            )
        case 4:
            narrow = LevelCodes(range_rule=rng.choice(RULES), table_dtype=table_dtype)
            wide = LevelCodes(bits=2, table_dtype=table_dtype)
            return MixedCodes(wide, narrow, share=rng.choice([0.25, 0.5]))
        case _:
            return Dense()


def random_input(rng):
    """x [2, V, H] and which positions are valid; padding holds anything."""
    numpy_rng = np.random.default_rng(rng.randrange(2**32))
    shape = (2, rng.choice([1, 5, 24]), 16)
    name = rng.choice(sorted(VALUES))
    x = VALUES[name](numpy_rng, shape).astype(np.float32)
    valid = numpy_rng.random(shape[:-1]) < rng.choice([0.7, 1.0])
    x = np.where(valid[..., None], x, rng.choice([np.nan, np.inf, 3e38, 0.0]))
    return name, x.astype(np.float32), valid


def coded(x, codes, valid):
    return quantize(jnp.asarray(x), codes, valid=jnp.asarray(valid))


def decoded(x, codes, valid):
    return np.asarray(dequantize(coded(x, codes, valid)))


def spans(codes, x, valid):
    """Least and greatest valid element of each element's group, in float64, and if any is bad."""
    wide = np.where(valid[..., None], x, 0.0).astype(np.float64)
    bad = valid[..., None] & ~np.isfinite(x)
    mask = np.broadcast_to(valid[..., None], x.shape)
    _, length, channels = x.shape
    low, high, spoilt = np.zeros_like(wide), np.zeros_like(wide), np.zeros(x.shape, bool)
    per_token = isinstance(codes, LevelCodes) and codes.granularity is Granularity.PER_TOKEN
    size = getattr(codes, "group_size", None) or (channels if per_token else length)
    for start in range(0, channels if per_token else length, size):
        block = np.s_[..., start : start + size] if per_token else np.s_[:, start : start + size]
        axis = -1 if per_token else -2
        inside = np.where(mask[block] & ~bad[block], wide[block], np.nan)
        with np.errstate(all="ignore"):
            least = np.fmin.reduce(inside, axis, keepdims=True)
            greatest = np.fmax.reduce(inside, axis, keepdims=True)
        low[block] = np.nan_to_num(least)
        high[block] = np.nan_to_num(greatest)
        spoilt[block] = bad[block].any(axis, keepdims=True)
    return low, high, spoilt


def test_level_codes_keep_every_element_within_a_step(cases):
    """With levels at the ends, the error of an element is at most half a step."""
    for case in cases(4):
        rng = random.Random(f"levels/{case}")
        codes = dataclasses.replace(
            random_level_codes(rng),
            range_rule=rng.choice([MinMax(), Quantile(0.0), Shrink(1.0)]),
            rotation=None,
        )
        name, x, valid = random_input(rng)
        got = decoded(x, codes, valid).astype(np.float64)
        low, high, _ = spans(codes, x, valid)
        most = TABLE_MAX[codes.table_dtype]
        low, high = np.clip(low, -most, most), np.clip(high, -most, most)
        expected = np.clip(np.where(valid[..., None], x, 0.0).astype(np.float64), -most, most)
        step = (high - low) / highest_code(codes.bits)
        # Levels are rounded, and subnormal numbers of float16 and float32 lose digits or are 0.
        rounding = RELATIVE[codes.table_dtype] * np.maximum(np.abs(low), np.abs(high))
        tiny = 2.0**-24 if codes.table_dtype == "float16" else 2.0**-125
        error = np.abs(got - expected)[valid]
        allowed = (step / 2 * (1 + 2**-18) + 2 * rounding + tiny)[valid]
        assert (error <= allowed).all(), (case, name, codes, (error / allowed).max())
        # An element that is one of its group's ends is that level.
        ends = ((expected == low) | (expected == high))[valid]
        assert (error[ends] <= (2 * rounding + tiny)[valid][ends]).all(), (case, name, codes)


def random_level_codes(rng):
    while not isinstance(codes := random_codes(rng), LevelCodes):
        pass
    return codes


def test_every_family_is_finite_for_finite_elements(cases):
    """Whatever the padding holds, and at the edge of float32."""
    for case in cases(3):
        rng = random.Random(f"finite/{case}")
        codes, (name, x, valid) = random_codes(rng), random_input(rng)
        tensor = coded(x, codes, valid)
        for leaf in jax.tree.leaves(tensor):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                assert bool(jnp.isfinite(leaf).all()), (case, name, codes)
        got = np.asarray(dequantize(tensor))
        assert np.isfinite(got).all(), (case, name, codes)


def test_padding_has_no_influence(cases):
    for case in cases(3):
        rng = random.Random(f"padding/{case}")
        codes, (name, x, valid) = random_codes(rng), random_input(rng)
        clean = np.where(valid[..., None], x, 0.0).astype(np.float32)
        one, two = (coded(values, codes, valid) for values in (x, clean))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), f"{case} {name} {codes}")


def test_what_is_not_finite_spoils_its_group_and_nothing_else(cases):
    for case in cases(3):
        rng = random.Random(f"nan/{case}")
        codes, (name, x, valid) = random_codes(rng), random_input(rng)
        if not valid.any():
            continue
        clean = np.where(valid[..., None], x, 0.0).astype(np.float32)
        row, token = rng.choice(np.argwhere(valid).tolist())
        spoilt = clean.copy()
        spoilt[row, token, rng.randrange(16)] = rng.choice([np.nan, np.inf, -np.inf])
        got = decoded(spoilt, codes, valid)
        _, _, bad = spans(codes, spoilt, valid)
        if isinstance(codes, Dense):
            expected = ~np.isfinite(spoilt)
        elif isinstance(codes, DictionaryCodes):
            expected = np.broadcast_to(bad.any((-1, -2), keepdims=True), bad.shape)
        elif getattr(codes, "rotation", None) is not None:
            expected = np.broadcast_to(bad.any(-1, keepdims=True), bad.shape)
        else:
            expected = bad
        expected, message = expected & valid[..., None], f"{case} {name} {codes}"
        np.testing.assert_array_equal(~np.isfinite(got) & valid[..., None], expected, message)
        if not isinstance(codes, Dense):
            assert np.isnan(got[expected]).all(), message
        # All else is as it would have been, other sequences to the last bit.
        other = decoded(clean, codes, valid)
        np.testing.assert_array_equal(got[1 - row], other[1 - row], message)


def test_sign_codes_are_unbiased_in_float64(cases):
    """<x_hat - c, x - c> = |x - c|^2 at gamma 1, until an element or a scale saturates."""
    for case in cases(3):
        rng = random.Random(f"signs/{case}")
        codes = SignCodes(
            rotation=rng.choice(["hadamard", None]),
            scale_bits=rng.choice([8, 16]),
            centre=rng.choice(["mean", "median"]),
            table_dtype="float32",
        )
        name, x, valid = random_input(rng)
        tensor = coded(x, codes, valid)
        centre = np.asarray(tensor.centre, np.float64)
        wide = np.clip(np.where(valid[..., None], x, 0.0).astype(np.float64), -LARGEST_SIGN, None)
        u = np.minimum(wide, LARGEST_SIGN) - centre
        hat = np.asarray(dequantize(tensor), np.float64) - centre
        # float32 cannot say where the token is closer to the centre than to the centre's own ulp.
        square = np.square(u).sum(-1)
        clear = valid & (np.abs(u).max(-1) > 2**-12 * np.abs(wide).max(-1)) & (square > 1e-60)
        scale = np.sqrt(square / x.shape[-1])
        if codes.scale_bits == 8:
            clear &= (scale < 3e4) & (scale > 1e-4)
        ratio = (u * hat).sum(-1)[clear] / square[clear]
        allowed = 0.046 if codes.scale_bits == 8 else 2**-8
        assert (np.abs(ratio - 1) < allowed + 1e-3).all(), (case, name, codes, ratio)


def test_gradient_passes_at_the_edge(cases):
    for case in cases(3):
        rng = random.Random(f"gradient/{case}")
        codes, (name, x, valid) = random_codes(rng), random_input(rng)

        def total(x, codes=codes, valid=valid):
            return vkq_jax.fake_quantize(x, codes, valid=jnp.asarray(valid)).sum()

        gradient = np.asarray(jax.grad(total)(jnp.asarray(x)))
        expected = np.broadcast_to(valid[..., None], x.shape)
        np.testing.assert_array_equal(gradient, expected.astype(np.float32), f"{case} {name}")


NOT_INPUTS = [
    (lambda: quantize(np.zeros((2, 0), np.float32), Dense()), "at least one channel"),
    (lambda: quantize(np.zeros(3, np.float32), Dense()), r"\[..., V, H\]"),
    (lambda: quantize(np.zeros((2, 3), np.int32), Dense()), "x must be floating"),
    (lambda: quantize(np.zeros((2, 3), np.float32), MinMax()), "config must be the settings"),
    (
        lambda: quantize(np.zeros((2, 3), np.float32), Dense(), valid=np.ones(2)),
        "valid must be boolean",
    ),
]


@pytest.mark.parametrize(("call", "message"), NOT_INPUTS)
def test_what_is_no_input_is_one_clear_error(as_users_run_it, one_clear_error, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    one_clear_error(caught.value)
