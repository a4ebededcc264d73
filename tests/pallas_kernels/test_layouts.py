"""The kernel's layout of words: its formula, and that nothing is lost."""

import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from pallas_kernels import layouts, tile
from vkq_jax import KVQuantConfig, LevelCodes, SignCodes, packing
from vkq_jax.cache import VisualBank


def random_words(*shape):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 2**32, shape, dtype=np.uint32))


@pytest.mark.parametrize("head_dim", layouts.HEAD_DIMS)
@pytest.mark.parametrize("positions", [1, 64, 65, 200, 256, 300, 576])
def test_tiling_is_undone(head_dim, positions):
    packed = random_words(2, 3, positions, head_dim // 32)
    keys, values = layouts.tile_keys(packed), layouts.tile_values(packed)
    assert keys.shape == (2, 3, layouts.key_words(positions, head_dim))
    assert values.shape == (2, 3, layouts.value_words(positions, head_dim))
    np.testing.assert_array_equal(layouts.untile_keys(keys, positions, head_dim), packed)
    np.testing.assert_array_equal(layouts.untile_values(values, positions, head_dim), packed)
    for dtype in (jnp.uint8, jnp.bfloat16):
        scales = (packed[..., 0] & 255).astype(dtype)
        tiled = layouts.tile_scales(scales)
        np.testing.assert_array_equal(layouts.untile_scales(tiled, positions), scales)


def test_a_block_cut_short_takes_no_more_than_two_quarters_too_many():
    for positions in range(1, 600):
        for words, step in ((layouts.key_words, 64), (layouts.value_words, 128)):
            stored = words(positions, 128) * 32 // 128
            assert positions <= stored < positions + step


@pytest.mark.parametrize("head_dim", layouts.HEAD_DIMS)
def test_words_lie_where_the_docstring_says(head_dim):
    packed = random_words(256, head_dim // 32)
    rows = (head_dim // 16, 32, 4)
    keys, values = (f(packed).reshape(rows) for f in (layouts.tile_keys, layouts.tile_values))
    half = layouts.tile_values(packed[:128]).reshape(head_dim // 16, 32, 2)
    lane = np.arange(32)
    t, g = lane % 4, lane // 4
    for k, c, e, r in np.ndindex(4, 2, 2, 2):
        if head_dim == 128:
            got = keys[2 * k + c, :, 2 * e + r]
            expected = packed[64 * k + 32 * r + 8 * (2 * c + e) + g, t]
        else:
            got = keys[k, :, 2 * c + r]
            expected = packed[64 * k + 32 * r + 8 * (2 * c + t // 2) + g, t % 2]
        np.testing.assert_array_equal(got, expected)
    by_channel = packing.pack(packing.unpack(packed, 1, head_dim).T, 1)  # [H, 8]
    for m, h, r in np.ndindex(head_dim // 16, 2, 2):
        expected = by_channel[16 * m + 8 * r + g, 4 * h + t]
        np.testing.assert_array_equal(values[m, :, 2 * h + r], expected)
        if h == 0:
            np.testing.assert_array_equal(half[m, :, r], expected)


@pytest.mark.parametrize(
    "codes",
    [
        LevelCodes(group_size=256),
        SignCodes(scale_bits=8),
        LevelCodes(bits=2),
        LevelCodes(bits=4),
    ],
)
def test_a_tiled_bank_means_what_it_was_made_from(codes):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 300, 64)), jnp.float32)
    coded = vkq_jax.quantize(x, codes)
    bank = VisualBank(coded, coded, jnp.full(2, 300, jnp.int32))
    tiled = tile(bank)
    for x in (tiled.key, tiled.value):
        assert type(x) is not type(coded)
        np.testing.assert_array_equal(x.dequantize(), coded.dequantize())
    assert tile(tiled).key is tiled.key


def test_what_cannot_be_tiled_stays_as_it_is():
    x = jnp.ones((1, 1, 300, 64))
    for quant in (vkq_jax.presets["kivi-2bit"], KVQuantConfig(SignCodes(), LevelCodes(bits=8))):
        key, value = vkq_jax.quantize(x, quant.key), vkq_jax.quantize(x, quant.value)
        bank = VisualBank(key, value, jnp.full(1, 300, jnp.int32))
        assert tile(bank) is bank
