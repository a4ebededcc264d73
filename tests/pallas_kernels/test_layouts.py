"""The kernel's layout of words: its formula, and that nothing is lost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from pallas_kernels import tile
from pallas_kernels.layout import layouts
from vkq_jax import KVQuantConfig, LevelCodes, SignCodes
from vkq_jax.bits import packing
from vkq_jax.cache.visual_bank import VisualBank


def random_words(*shape):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 2**32, shape, dtype=np.uint32))


@pytest.mark.parametrize("head_dim", [*layouts.STORED_HEAD_DIMS, 32, 96, 160])
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


def test_halves_of_256_channels_lie_one_after_the_other():
    packed = random_words(2, 300, 8)
    for tiled in (layouts.tile_keys, layouts.tile_values):
        halves = [tiled(packed[..., :4]), tiled(packed[..., 4:])]
        np.testing.assert_array_equal(tiled(packed), jnp.concatenate(halves, axis=-1))


@pytest.mark.parametrize(
    "codes",
    [
        LevelCodes(group_size=256),
        SignCodes(scale_bits=8),
        LevelCodes(bits=2),
        LevelCodes(bits=4),
    ],
)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 160, 256])
def test_a_tiled_bank_means_what_it_was_made_from(codes, head_dim):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 300, head_dim)), jnp.float32)
    coded = vkq_jax.quantize(x, codes)
    bank = VisualBank(coded, coded, jnp.full(2, 300, jnp.int32))
    tiled = tile(bank)
    for x in (tiled.key, tiled.value):
        assert type(x) is not type(coded)
        np.testing.assert_array_equal(x.dequantize(), coded.dequantize())
        assert x.head_dim == head_dim
        arrays, expected = (jax.tree.leaves(t) for t in (x.plain(), coded))
        for array, original in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, original)
    assert tile(tiled).key is tiled.key


def test_channels_of_zeros_are_stored_and_counted():
    x = jnp.ones((1, 1, 2, 512, 96), jnp.bfloat16)  # [L, B, K, V, H]
    coded = vkq_jax.quantize(x, SignCodes(scale_bits=8))
    bank = tile(VisualBank(coded, coded, jnp.full(1, 512, jnp.int32)))
    quant = vkq_jax.presets["signs-1bit"]
    sizes = {"num_layers": 1, "batch": 1, "num_kv_heads": 2, "head_dim": 96, "cache_length": 1}
    cache = dataclasses.replace(vkq_jax.empty_cache(**sizes, quant=quant), visual=(bank,))
    counted = vkq_jax.cache_nbytes(cache)
    assert counted.visual_codes == 2 * 2 * 512 * 128 // 8
    assert counted.visual_tables == 2 * 2 * (128 * 2 + 512)
    assert counted.visual_full_precision == 2 * 2 * 512 * 96 * 2
    words = packing.unpack(layouts.untile_keys(bank.key.packed, 512, 128), 1, 128)
    assert not words[..., 96:].any()
    assert bank.key.centre.shape[-1] == 128
    assert not bank.key.centre[..., 96:].any()


def test_what_cannot_be_tiled_stays_as_it_is():
    x = jnp.ones((1, 1, 300, 64))
    wide = vkq_jax.quantize(jnp.ones((1, 1, 300, 257)), SignCodes())
    bank = VisualBank(wide, wide, jnp.full(1, 300, jnp.int32))
    assert tile(bank) is bank
    for quant in (vkq_jax.presets["kivi-2bit"], KVQuantConfig(SignCodes(), LevelCodes(bits=8))):
        key, value = vkq_jax.quantize(x, quant.key), vkq_jax.quantize(x, quant.value)
        bank = VisualBank(key, value, jnp.full(1, 300, jnp.int32))
        assert tile(bank) is bank
