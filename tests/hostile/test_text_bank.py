"""Text in 8 bits by value class against float64: within half a step, NaN only in its token."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax.cache.text_bank import TextBank

SHAPE = (1, 2, 2, 6, 8)  # layers, sequences, heads, slots, channels
TOKENS = 4
MAGNITUDES = (0.0, 1e-45, 1e-38, 1e-7, 1e-3, 1.0, 60.0, 3e4, 1e38, 3.4e38)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def draw(rng, dtype):
    """Keys or values [B, T, K, H] of several magnitudes, and which tokens are not finite."""
    seed = np.random.default_rng(rng.randrange(2**32))
    shape = (SHAPE[1], TOKENS, SHAPE[2])
    size = np.array([rng.choice(MAGNITUDES) for _ in range(int(np.prod(shape)))]).reshape(shape)
    x = (
        seed.uniform(-1, 1, (*shape, SHAPE[-1]))
        * np.minimum(size, float(jnp.finfo(dtype).max))[..., None]
    )
    if rng.random() < 0.5:
        x[tuple(rng.randrange(n) for n in x.shape)] = rng.choice((np.nan, np.inf, -np.inf))
    return jnp.asarray(x, jnp.float32).astype(dtype)


@pytest.fixture(scope="module")
def filled():
    """A bank of one layer with these tokens written behind `before` others."""

    @jax.jit
    def fill(bank, key, value, valid):
        bank = bank.write(0, key, value, valid)
        return bank.advance(valid, jnp.zeros(valid.shape, jnp.int32))

    return fill


def check_side(case, given, coded, scale, dtype):
    """Codes and scales of written tokens [B, K, T, H] against what was given [B, T, K, H]."""
    x = np.asarray(given, np.float64).transpose(0, 2, 1, 3)
    step = np.asarray(scale, np.float64)
    finite = np.isfinite(x).all(-1)
    np.testing.assert_array_equal(np.isfinite(step), finite, err_msg=str(case))
    got = np.asarray(coded, np.float64) * np.where(finite, step, 1)[..., None]
    # A scale that the dtype cannot hold is 0: so small are all of the token's channels.
    smallest = float(jnp.finfo(dtype).smallest_normal)
    bound = np.where(
        step > smallest, 0.5 * step * (1 + 1e-5) + 127 * step * 2.0**-9, 128 * smallest
    )
    error = np.where(finite[..., None], np.abs(got - x), 0)
    assert (error <= np.where(finite, bound, np.inf)[..., None]).all(), case


def test_tokens_in_8_bits_are_within_half_a_step(filled, cases):
    for case in cases(40):
        rng = random.Random(f"text/{case}")
        dtype = rng.choice(DTYPES)
        key, value = draw(rng, dtype), draw(rng, dtype)
        valid = jnp.asarray([[rng.random() < 0.7 for _ in range(TOKENS)] for _ in range(SHAPE[1])])
        bank = filled(TextBank.empty(SHAPE, dtype, bits=8), key, value, valid)
        counts = np.asarray(valid).sum(-1)
        assert bank.length.tolist() == counts.tolist()
        for side, given in (("key", key), ("value", value)):
            codes, scales = (
                np.asarray(x[0], np.float32)
                for x in (getattr(bank, side), getattr(bank, f"{side}_scale"))
            )
            given = np.asarray(given, np.float32)
            for row, count in enumerate(counts):
                chosen = np.flatnonzero(np.asarray(valid[row]))
                written = given[row : row + 1, chosen]
                check_side(
                    case,
                    written,
                    codes[row : row + 1, :, :count],
                    scales[row : row + 1, :, :count],
                    dtype,
                )
                # Slots without a token stay empty.
                assert not codes[row, :, count:].any()
                assert not scales[row, :, count:].any()
