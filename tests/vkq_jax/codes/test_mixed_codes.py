"""Codes of unlike precision: of channels, of three levels, of rotated channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.caches import Shape, attend, oracle, random_layer
from vkq_jax import LevelCodes, MeanMagnitude, MixedCodes, MixedTensor
from vkq_jax.bits import packing
from vkq_jax.bits.packing import TERNARY
from vkq_jax.bits.rotation import rotate

MIXED = MixedCodes(wide=LevelCodes(bits=2), narrow=LevelCodes(), share=0.25)


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    """Channels of unlike range."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1])), jnp.float32)


def test_channels_of_the_widest_range_get_the_wide_codes():
    x = tokens(2, 50, 16)
    coded = vkq_jax.quantize(x, MIXED)
    assert isinstance(coded, MixedTensor)
    span = np.asarray(x.max(-2) - x.min(-2))
    for row, channel in zip(span, np.asarray(coded.channel), strict=True):
        np.testing.assert_array_equal(np.sort(channel[:4]), np.sort(np.argsort(-row)[:4]))
    got = vkq_jax.dequantize(coded)
    for part, places in ((coded.wide, slice(4)), (coded.narrow, slice(4, None))):
        mine = np.take_along_axis(np.asarray(got), np.asarray(coded.channel)[:, None], -1)
        np.testing.assert_array_equal(mine[..., places], part.dequantize())


def test_padding_has_no_influence_on_mixed_codes():
    x = tokens(1, 40, 16)
    valid = jnp.arange(40) < 25
    noise = jnp.where(valid[:, None], x, jnp.inf)
    one, other = (
        vkq_jax.quantize(v, MIXED, valid=valid) for v in (jnp.where(valid[:, None], x, 0), noise)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_are_checked(share):
    with pytest.raises(ValueError, match="share must be"):
        MixedCodes(LevelCodes(), LevelCodes(), share=share)


def test_words_that_name_no_channel_are_refused():
    coded = vkq_jax.quantize(tokens(1, 9, 8), MIXED)
    twice = MixedTensor(coded.wide, coded.narrow, coded.channel.at[..., 0].set(coded.channel[0, 1]))
    with pytest.raises(ValueError, match="name each of 8 channels once"):
        twice.check()


@pytest.mark.parametrize("length", [1, 5, 64, 127])
def test_three_levels_are_digits_of_bytes(length):
    codes = jnp.asarray(np.random.default_rng(length).integers(0, 3, (3, length)))
    words = packing.pack(codes, TERNARY)
    assert words.dtype == jnp.uint8
    assert words.shape == (3, -(-length // 5))
    packing.check_words(words, TERNARY, length)
    np.testing.assert_array_equal(packing.unpack(words, TERNARY, length), codes)
    with pytest.raises(ValueError, match="in base 3 must be below"):
        packing.check_words(words.at[0, -1].set(243), TERNARY, length)


def test_three_levels_are_those_of_the_mean_magnitude():
    x = jnp.asarray([[-4.0], [-0.6], [0.4], [1.0]])  # mean magnitude 1.5: the threshold is 0.75
    coded = vkq_jax.quantize(x, LevelCodes(TERNARY, MeanMagnitude()))
    np.testing.assert_array_equal(vkq_jax.dequantize(coded), [[-1.5], [0.0], [0.0], [1.5]])


def test_rotated_levels_are_levels_of_rotated_channels():
    x = tokens(2, 30, 16)
    rotated = vkq_jax.quantize(x, LevelCodes(bits=4, rotation="hadamard"))
    plain = vkq_jax.quantize(rotate(x), LevelCodes(bits=4))
    np.testing.assert_array_equal(rotated.packed, plain.packed)
    np.testing.assert_allclose(
        rotate(vkq_jax.dequantize(rotated)), vkq_jax.dequantize(plain), atol=1e-5
    )


def test_parts_of_a_bit_lie_between_whole_ones():
    x = jax.random.normal(jax.random.key(0), (1, 400, 64))
    errors = []
    for name in ("turboquant-2bit", "turboquant-2.5bit", "turboquant-3bit"):
        coded = vkq_jax.quantize(x, vkq_jax.presets[name].key)
        error = jnp.square(vkq_jax.dequantize(coded) - x).sum(-1) / jnp.square(x).sum(-1)
        errors.append(float(error.mean()))
    # Squared errors of N(0, 1) on Max's uniform grids.
    np.testing.assert_allclose(errors, [0.1188, (0.1188 + 0.0374) / 2, 0.0374], rtol=0.08)


@pytest.mark.parametrize(
    "name", ["vidkv-1.5bit", "turboquant-2.5bit", "oscar-2bit", "quantile-1bit"]
)
def test_attention_equals_its_oracle(name):
    query, layer = random_layer(Shape(head_dim=16, visual=((40, (40, 7)),)), vkq_jax.presets[name])
    got, expected = attend(query, layer), oracle(query, layer)
    np.testing.assert_allclose(got.output, expected.output, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=1e-5, atol=1e-5)
