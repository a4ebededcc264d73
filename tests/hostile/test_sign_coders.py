"""Sign codes by class of values, by XLA and by the (emulated) coding kernel: one contract for both.

Elements that are NaN or infinite spoil what they belong to and nothing else, elements beyond 2^100
saturate, padding has no influence, and what is left is right in float64.
"""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels.isa.program import run_emulated
from pallas_kernels.quantize.quantize_bank import fused_bank
from tests.hostile.test_quantizers import LARGEST_SIGN, VALUES
from vkq_jax import KVQuantConfig, SignCodes
from vkq_jax.cache.visual_bank import quantize_visual

HEAD_DIM, POSITIONS = 64, 40
SETTINGS = [
    SignCodes(rotation=rotation, gamma=gamma, scale_bits=scale_bits)
    for rotation, gamma, scale_bits in (
        ("hadamard", 1.0, 8),
        (None, 1.0, 16),
        ("hadamard", 0.5, 16),
    )
]


def plain(key, value, index, valid, quant):
    return pallas_kernels.tile(quantize_visual(key, value, index, valid, quant))


CODERS = {"xla": plain, "kernel": functools.partial(fused_bank, run=run_emulated)}


@functools.cache
def compiled(name, codes):
    """Code words, centre and decoded values [side, B, K, V, ...] of activations [B, T, K, H]."""

    def run(key, value, index, valid):
        bank = CODERS[name](key, value, index, valid, KVQuantConfig(codes, codes))
        sides = [side.plain() for side in (bank.key, bank.value)]
        found = [(side.packed, side.centre[..., 0, :], side.dequantize()) for side in sides]
        return jax.tree.map(lambda *x: jnp.stack(x), *found)

    return jax.jit(run)


def coded(name, codes, x, valid):
    index = np.broadcast_to(np.arange(POSITIONS, dtype=np.int32), valid.shape)
    key, value = jnp.asarray(x, jnp.float32)
    found = compiled(name, codes)(key, value, jnp.asarray(index), jnp.asarray(valid))
    return [np.asarray(array, np.float64 if i else None) for i, array in enumerate(found)]


def draw(rng):
    """Activations [side, B, T, K, H] and which positions are valid; padding holds anything."""
    numpy_rng = np.random.default_rng(rng.randrange(2**32))
    value_class = rng.choice(sorted(VALUES))
    x = VALUES[value_class](numpy_rng, (2, 2, POSITIONS, 2, HEAD_DIM)).astype(np.float32)
    valid = np.arange(POSITIONS) < numpy_rng.integers(1, POSITIONS + 1, (2, 1))
    padding = rng.choice([np.nan, np.inf, 3e38, 0.0])
    return value_class, np.where(valid[..., None, None], x, padding).astype(np.float32), valid


def by_head(x):
    """[side, B, T, K, H] as [side, B, K, T, H]."""
    return np.swapaxes(x, 2, 3)


@pytest.mark.parametrize("coder", CODERS)
def test_signs_are_right_in_float64_and_padding_has_no_influence(cases, coder):
    for case in cases(6):
        rng = random.Random(f"sign coders/{case}")
        codes, (value_class, x, valid) = rng.choice(SETTINGS), draw(rng)
        message = f"{case} {value_class} {codes}"
        _, centre, values = coded(coder, codes, x, valid)
        taken = np.broadcast_to(valid[None, :, None, :], values.shape[:-1])
        assert np.isfinite(centre).all(), message
        assert np.isfinite(values[taken]).all(), message
        wide = np.clip(
            by_head(np.where(valid[..., None, None], x, 0)).astype(np.float64), None, LARGEST_SIGN
        )
        wide = np.maximum(wide, -LARGEST_SIGN)
        mean = wide.sum(-2) / valid.sum(-1)[None, :, None, None]
        allowed = 2**-8 * np.abs(mean) + 2**-20 * np.abs(wide).max(-2) + 1e-37
        assert (np.abs(centre - mean) <= allowed).all(), message
        u, hat = wide - centre[..., None, :], values - centre[..., None, :]
        square = np.square(u).sum(-1)
        scale = np.sqrt(square / HEAD_DIM)
        clear = taken & (np.abs(u).max(-1) > 2**-12 * np.abs(wide).max(-1)) & (scale > 1e-35)
        if codes.scale_bits == 8:
            clear &= (scale < 3e4) & (scale > 1e-4)
        if codes.gamma == 1:  # <x_hat - c, x - c> = |x - c|^2
            ratio = (u * hat).sum(-1)[clear] / square[clear]
            assert (np.abs(ratio - 1) < (0.046 if codes.scale_bits == 8 else 2**-8) + 1e-3).all(), (
                message
            )
        clean = np.where(valid[..., None, None], x, 1.0).astype(np.float32)
        for one, two in zip(coded(coder, codes, clean, valid), (_, centre, values), strict=True):
            if one.ndim == values.ndim and one.shape[-1] == HEAD_DIM:
                one, two = one[taken], two[taken]
            np.testing.assert_array_equal(one, two, message)


@pytest.mark.parametrize("coder", CODERS)
def test_what_is_not_finite_spoils_its_head_and_nothing_else(cases, coder):
    for case in cases(4):
        rng = random.Random(f"sign coders, not finite/{case}")
        codes, (value_class, x, valid) = rng.choice(SETTINGS), draw(rng)
        clean = coded(coder, codes, x, valid)[2]
        side, row, head, channel = (
            rng.randrange(2),
            rng.randrange(2),
            rng.randrange(2),
            rng.randrange(64),
        )
        token = rng.choice(np.flatnonzero(valid[row]).tolist())
        spoilt = x.copy()
        spoilt[side, row, token, head, channel] = rng.choice([np.nan, np.inf, -np.inf])
        _, centre, values = coded(coder, codes, spoilt, valid)
        message = f"{case} {value_class} {codes}"
        expected = np.zeros(centre.shape, bool)
        expected[side, row, head, channel] = True
        np.testing.assert_array_equal(np.isnan(centre), expected, message)
        taken = np.broadcast_to(valid[None, :, None, :, None], values.shape)
        if codes.rotation is not None:
            expected[side, row, head] = True
        expected = taken & expected[..., None, :]
        np.testing.assert_array_equal(np.isnan(values) & taken, expected, message)
        assert np.isfinite(values[taken & ~expected]).all(), message
        others = taken & ~expected
        others[side, row, head] = False
        np.testing.assert_array_equal(values[others], clean[others], message)


def test_the_kernel_codes_as_xla_does(cases):
    """Codes, NaN and scales agree for every class of values, also in heads that are spoilt."""
    alike = []
    for case in cases(8):
        rng = random.Random(f"sign coders, both/{case}")
        codes, (value_class, x, valid) = rng.choice(SETTINGS), draw(rng)
        for _ in range(rng.choice([0, 0, 3])):
            place = tuple(rng.randrange(n) for n in x.shape)
            x[place] = rng.choice([np.nan, np.inf, -np.inf])
        ours, theirs = (coded(name, codes, x, valid) for name in ("kernel", "xla"))
        message = f"{case} {value_class} {codes}"
        np.testing.assert_array_equal(np.isnan(ours[1]), np.isnan(theirs[1]), message)
        differing = np.bitwise_count(ours[0] ^ theirs[0]).sum()
        assert differing <= 2e-3 * 32 * ours[0].size, (message, differing)
        centre, right = np.nan_to_num(ours[1]), np.nan_to_num(theirs[1])
        # Terms of a sum that is close to 0 cancel, in another order to other digits.
        terms = np.abs(by_head(np.nan_to_num(np.where(valid[..., None, None], x, 0.0))))
        terms = np.minimum(terms, LARGEST_SIGN).max(-2)
        allowed = 2**-7 * np.abs(right) + 2**-20 * terms + 1e-37
        assert (np.abs(centre - right) <= allowed).all(), message
        # The norm around the centre is that of the scale, whatever the codes. A mean between two
        # numbers of bfloat16 may be rounded either way, and tokens lie elsewhere around the other.
        same = (centre == right).all(-1)
        alike.append(same.mean())
        taken = valid[None, :, None, :] & same[..., None]
        norm, right = (
            np.linalg.norm(np.nan_to_num(values - centre[..., None, :]), axis=-1)[taken]
            for _, centre, values in (ours, theirs)
        )
        allowed = 0.1 if codes.scale_bits == 8 else 2**-6
        assert (np.abs(norm - right) <= allowed * right + 1e-35).all(), message
    assert np.mean(alike) > 0.8
