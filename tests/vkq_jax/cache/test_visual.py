import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkq_jax.cache.visual import VisualSpan, left_pack, visual_mask, visual_spans

IDS = np.array([[1, 9, 9, 9, 4, 9, 8], [1, 2, 3, 4, 5, 6, 7], [9, 9, 9, 9, 9, 9, 9]], np.int32)


def test_spans_of_several_images_none_and_nothing_else():
    assert visual_spans(IDS, 9) == [
        [VisualSpan(1, 3), VisualSpan(5, 1)],
        [],
        [VisualSpan(0, 7)],
    ]
    assert visual_spans(IDS, (8, 9))[0] == [VisualSpan(1, 3), VisualSpan(5, 2)]
    assert VisualSpan(5, 2).stop == 7


def test_spans_are_of_one_sequence_or_of_several(as_users_run_it):
    assert visual_spans(IDS[0], 9) == visual_spans(IDS[:1], 9)
    for ids in (IDS[0, 0], IDS[None]):
        with pytest.raises(ValueError, match=r"expected integers \[B, T\] or \[T\]"):
            visual_spans(ids, 9)


@pytest.mark.parametrize("token", [2**31, -(2**31) - 1])
def test_tokens_of_more_than_32_bits_are_refused(token):
    with pytest.raises(ValueError, match=rf"expected integers of 32 bits, got {token}"):
        visual_mask(jnp.asarray(IDS), (9, token))


def test_mask_of_one_and_of_several_tokens():
    np.testing.assert_array_equal(visual_mask(jnp.asarray(IDS), 9), IDS == 9)
    np.testing.assert_array_equal(
        jax.jit(visual_mask, static_argnums=1)(jnp.asarray(IDS), (8, 9)), (IDS == 9) | (IDS == 8)
    )


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_compact_keeps_order_and_counts(rows):
    mask = np.array(rows)
    for capacity in (int(mask.sum(1).max()), 6, 9):
        index, valid = left_pack(jnp.asarray(mask), capacity)
        assert index.shape == valid.shape == (len(rows), capacity)
        for row, positions, taken in zip(mask, np.asarray(index), np.asarray(valid), strict=True):
            np.testing.assert_array_equal(positions[taken], np.flatnonzero(row))
            assert not positions[~taken].any()


def test_compact_keeps_the_order_of_many_positions():
    mask = np.random.default_rng(0).random((2, 600)) < 0.5
    index, valid = left_pack(jnp.asarray(mask), 400)
    for row in range(2):
        expected = np.flatnonzero(mask[row])
        np.testing.assert_array_equal(index[row, : len(expected)], expected)
        assert valid[row].sum() == len(expected)
