"""Starts of sliding windows, against the positions that a query sees by definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.slots import visible

WINDOW = 5


def cache_of(visual: list[list[int]], text: list[list[int]], **options) -> vkq_jax.KVCache:
    """A cache whose banks hold tokens at these positions, and padding that looks old."""
    cache = vkq_jax.empty_cache(
        num_layers=1,
        batch=len(text),
        num_kv_heads=1,
        head_dim=4,
        cache_length=8,
        quant=vkq_jax.resolve("none"),
        dtype=jnp.float32,
        **options,
    )

    def length(rows):
        return jnp.asarray([len(row) for row in rows], jnp.int32)

    def position(rows, capacity):
        return jnp.asarray([row + [0] * (capacity - len(row)) for row in rows], jnp.int32)

    values = vkq_jax.DenseTensor(jnp.zeros((1, len(text), 1, 6, 4)))
    bank = VisualBank(values, values, length(visual), position(visual, 6))
    text_bank = dataclasses.replace(cache.text, length=length(text), index=position(text, 8))
    return dataclasses.replace(cache, visual=(bank,), text=text_bank)


def test_starts_are_where_the_window_begins():
    visual, text = [[2, 3, 4, 5], [0, 1, 9]], [[0, 1, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8]]
    positions = jnp.asarray([[8, 9, 30], [8, 9, 10]], jnp.int32)
    cache = cache_of(visual, text, keep_indices=True)
    starts = jax.jit(vkq_jax.window_starts, static_argnums=2)(cache, positions, WINDOW)
    for bank, rows in ((starts.visual[0], visual), (starts.text, text)):
        for i, row in enumerate(rows):
            for t, p in enumerate(positions[i].tolist()):
                seen = [slot for slot, j in enumerate(row) if p - WINDOW < j <= p]
                first = int(bank[i, t])
                np.testing.assert_array_equal([s for s in seen if s < first], [])
                assert [s for s in range(first, len(row)) if row[s] <= p] == seen
    assert starts.visual[0][0, 2] == 4  # its length: nothing is left


def test_a_cache_without_positions_has_no_window():
    cache = vkq_jax.empty_cache(
        num_layers=1,
        batch=1,
        num_kv_heads=1,
        head_dim=4,
        cache_length=8,
        quant=vkq_jax.resolve("none"),
    )
    with pytest.raises(ValueError, match="needs a cache that keeps the numbers"):
        vkq_jax.window_starts(cache, jnp.zeros((1, 1), jnp.int32), WINDOW)


def test_an_empty_window_is_an_error():
    cache = cache_of([[0]], [[1]], keep_indices=True)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        vkq_jax.window_starts(cache, jnp.zeros((1, 1), jnp.int32), 0)


def test_visible_slots():
    stop = jnp.asarray([[2], [4]], jnp.int32)
    start = jnp.asarray([[0, 2], [1, 5]], jnp.int32)
    seen = visible(start, stop, 4).astype(int).tolist()
    assert seen == [[[1, 1, 0, 0], [0, 0, 0, 0]], [[0, 1, 1, 1], [0, 0, 0, 0]]]
    assert visible(None, stop, 4).astype(int).tolist() == [[[1, 1, 0, 0]], [[1, 1, 1, 1]]]
