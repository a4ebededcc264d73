"""Axes of a mesh that a cache is split over; meshes themselves are in tests/sharding."""

import jax
from jax.sharding import PartitionSpec as Spec

from tests.vkq_jax.cache.test_sharing import one_sequence
from vkq_jax.cache.sharing import share_visual
from vkq_jax.sharding.specs import CacheAxes, cache_specs


def test_text_is_in_parts_where_they_are_equal():
    axes = CacheAxes(parts="model", num_parts=4)
    assert [axes.splits_text(length) for length in (4, 8, 6, 3)] == [True, True, False, False]
    assert not CacheAxes(num_parts=4).splits_text(8)


def test_a_bank_that_sequences_share_lies_whole_on_their_devices():
    axes = CacheAxes(sequences="data", kv_heads="model", counts="data")
    one = one_sequence()
    for batch, split in ((1, "data"), (2, None)):
        specs = cache_specs(share_visual(one, batch), axes)
        (bank,) = specs.visual
        found = set(jax.tree.leaves((bank.key, bank.value), is_leaf=lambda x: isinstance(x, Spec)))
        assert found == {Spec(None, split, "model")}
        assert bank.length == Spec(split)
        assert specs.text.key == Spec(None, "data", "model")
        assert specs.position == Spec("data")
