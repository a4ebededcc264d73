"""A visual bank of one sequence that several attend to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
from tests.support import caches
from tests.support.caches import Shape, random_layer, random_starts, relative_error
from vkq_jax.cache.sharing import is_shared, share_visual

ONE = Shape(batch=1, num_queries=2, text=(5,), visual=((40, (33,)), (9, (9,))))
THREE = Shape(batch=3, num_queries=2, text=(5, 9, 2), visual=())


def shared_layer(preset):
    """Queries of three sequences, and a layer whose visual banks are those of one."""
    quant = vkq_jax.resolve(preset)
    _, one = random_layer(ONE, quant)
    query, three = random_layer(THREE, quant, seed=1)
    return query, dataclasses.replace(three, visual=one.visual, tables=one.tables)


def repeated(layer):
    """The same layer with a copy of its banks for each sequence."""
    banks = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), layer.visual)
    return dataclasses.replace(layer, visual=banks)


@pytest.mark.parametrize(
    ("preset", "windowed"), [("vkq-1bit", True), ("calibquant-1bit", False), ("none", True)]
)
def test_attention_is_that_over_a_copy_for_each_sequence(preset, windowed):
    query, layer = shared_layer(preset)
    starts = random_starts(query, repeated(layer)) if windowed else None
    expected = caches.attend(query, repeated(layer), starts=starts)
    got = caches.attend(query, layer, starts=starts)
    oracle = caches.oracle(query, layer, starts=starts)
    assert relative_error(got.output, expected.output) < 1e-5
    assert relative_error(oracle.output, expected.output) < 1e-5
    np.testing.assert_array_equal(got.calibration_skipped, expected.calibration_skipped)


def test_the_fused_kernel_says_why_it_does_not_take_it():
    _, layer = shared_layer("vkq-1bit")
    assert "a visual bank that several sequences share" in pallas_kernels.explain(layer)


def one_sequence(keep_indices=False):
    quant = vkq_jax.resolve("kivi-2bit")
    _, one = random_layer(ONE, quant)
    cache = vkq_jax.empty_cache(
        num_layers=1, batch=1, num_kv_heads=2, head_dim=16, cache_length=9, quant=quant,
        dtype=jnp.float32, keep_indices=keep_indices,
    )  # fmt: skip
    key, value = jax.tree.map(lambda x: x[None], [(b.key, b.value) for b in one.visual])[0]
    numbers = jnp.arange(40, dtype=jnp.int32)[None] if keep_indices else None
    bank = vkq_jax.VisualBank(key, value, one.visual[0].length, numbers)
    return dataclasses.replace(cache, visual=(bank,))


@pytest.mark.parametrize("keep_indices", [False, True])
def test_sharing_repeats_text_alone_and_survives_a_file(tmp_path, keep_indices):
    one = one_sequence(keep_indices)
    shared = share_visual(one, 3)
    before, after = vkq_jax.cache_nbytes(one), vkq_jax.cache_nbytes(shared)
    assert after.visual == before.visual
    share = before.visual / before.visual_full_precision
    assert before.visual_reduction == pytest.approx(1 - share)
    assert after.text == 3 * before.text
    assert shared.visual[0].key is one.visual[0].key
    assert is_shared(shared.visual[0], 3)
    assert not is_shared(one.visual[0], 1)
    for cache in (one, vkq_jax.take_sequences(one, [0, 0])):
        assert "room for 40 a sequence" in repr(cache)
    assert "33, room for 40 shared by 3 sequences" in repr(shared)
    assert shared.num_tokens.tolist() == [33, 33, 33]
    vkq_jax.save_cache(tmp_path / "cache", shared)
    jax.tree.map(np.testing.assert_array_equal, vkq_jax.load_cache(tmp_path / "cache"), shared)
    two = vkq_jax.take_sequences(shared, [2, 0])
    assert two.text.length.shape == (2,)
    assert two.visual[0].key is one.visual[0].key
    assert vkq_jax.cache_nbytes(vkq_jax.take_sequences(one, [0, 0])).visual > 2 * before.visual - 9


@pytest.mark.parametrize("batch", [0, 2, True])
def test_only_one_sequence_is_shared(batch):
    cache = share_visual(one_sequence(), 2) if batch == 2 else share_visual(one_sequence(), 1)
    with pytest.raises(ValueError, match="expected a cache of 1 sequence and a batch of at least"):
        share_visual(cache, batch)


def test_two_banks_for_three_sequences_are_not_written(tmp_path):
    shared = share_visual(one_sequence(), 3)
    wrong = dataclasses.replace(shared, visual=share_banks(shared))
    with pytest.raises(ValueError, match=r"visual\.0"):
        vkq_jax.save_cache(tmp_path / "cache", wrong)


def share_banks(cache):
    (bank,) = cache.visual
    key, value = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1), (bank.key, bank.value))
    return (dataclasses.replace(bank, key=key, value=value, length=jnp.repeat(bank.length, 2)),)
