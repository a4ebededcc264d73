"""Axes of a mesh that a cache is split over; meshes themselves are in tests/sharding."""

from vkq_jax.sharding.specs import CacheAxes


def test_text_is_in_parts_where_they_are_equal():
    axes = CacheAxes(parts="model", num_parts=4)
    assert [axes.splits_text(length) for length in (4, 8, 6, 3)] == [True, True, False, False]
    assert not CacheAxes(num_parts=4).splits_text(8)
