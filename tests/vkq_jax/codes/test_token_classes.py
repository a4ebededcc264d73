"""Classes of tokens: every token has one slot, classes their shares, maps lead both ways."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax.codes.token_classes import TokenClass, assign_classes, capacities, check_classes

CLASSES = (TokenClass(0.1, 3), TokenClass(0.2, 2), TokenClass(0.3, 1), TokenClass(0.4, 0))


def energies(seed: int, length: int, heads: int = 2) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).exponential(size=(heads, length)), jnp.float32)


@hypothesis.given(
    st.lists(st.integers(1, 400), min_size=1, max_size=4),
    st.sampled_from([0, 1, 37, 700]),  # few: every length compiles anew
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_the_slots_of_a_class_hold_its_share_of_any_number_of_tokens(parts, length):
    thousandths = np.diff([0, *np.cumsum(parts[:-1]), 1000])
    hypothesis.assume((thousandths > 0).all())
    classes = tuple(TokenClass(int(x) / 1000, 1) for x in thousandths)
    check_classes(classes)
    room = capacities(classes, length)
    for count in {length, length // 2, length // 3, sum(parts) % (length + 1)}:
        valid = jnp.arange(length)[None] < count
        number = assign_classes(energies(1, length, 1), valid, classes).classes()
        sizes = [int((number == c).sum()) for c in range(len(classes))]
        assert sum(sizes) == count
        for size, slots, share in zip(sizes, room, thousandths, strict=True):
            assert size <= slots
            assert abs(size - count * share / 1000) <= 1


def test_a_class_keeps_its_share_of_millions_of_tokens():
    """A thousand times as many tokens is no int32 any more."""
    length = 2_200_000
    energy = jnp.arange(length, dtype=jnp.float32)[None]
    class_map = assign_classes(energy, jnp.ones((1, length), bool), CLASSES)
    sizes = np.bincount(np.asarray(class_map.classes())[0])
    np.testing.assert_array_equal(sizes, [length * c.share for c in CLASSES])
    assert capacities(CLASSES, length) == tuple(sizes)
    assert capacities(CLASSES, 2**31 - 1)[0] == 214_748_365


def test_the_greatest_energies_come_first_and_padding_into_no_class():
    energy = energies(0, 50)
    valid = jnp.asarray(np.random.default_rng(1).random((2, 50)) < 0.7)
    number = np.asarray(assign_classes(energy, valid, CLASSES).classes())
    for row, own, taken in zip(number, np.asarray(energy), np.asarray(valid), strict=True):
        assert (row[~taken] == len(CLASSES)).all()
        for c in range(len(CLASSES) - 1):
            assert own[row == c].min() >= own[(row > c) & taken].max()


def test_the_classes_of_a_sequence_do_not_depend_on_its_padding():
    energy = energies(2, 90)
    whole = assign_classes(energy[:, :60], jnp.ones((2, 60), bool), CLASSES).classes()
    padded = assign_classes(energy, jnp.arange(90)[None] < jnp.full((2, 1), 60), CLASSES).classes()
    np.testing.assert_array_equal(padded[:, :60], whole)


def test_slots_and_positions_lead_to_each_other():
    valid = jnp.asarray(np.random.default_rng(1).random((2, 61)) < 0.6)
    class_map = assign_classes(energies(3, 61), valid, CLASSES)
    slots = np.asarray(class_map.slots_of_positions())
    whole, used = (np.asarray(x) for x in class_map.positions_of_slots())
    stops = np.cumsum(class_map.capacities)[:-1]
    positions, taken = (np.split(x, stops, axis=-1) for x in (whole, used))
    for row in range(2):
        for position in np.flatnonzero(valid[row]):
            assert used[row, slots[row, position]]
            assert whole[row, slots[row, position]] == position
        assert used[row].sum() == valid[row].sum()
        for part, own in zip(positions, taken, strict=True):  # a window hides the first slots
            assert (np.diff(part[row][own[row]]) > 0).all()


@pytest.mark.parametrize("position", [0, 1, 17, 61])
def test_slots_below_hold_the_first_positions(position):
    class_map = assign_classes(energies(4, 61), jnp.ones((2, 61), bool), CLASSES)
    below = class_map.slots_below(jnp.full((2, 1), position, jnp.int32))[:, 0]
    slots = class_map.slots_of_positions()
    got = np.take_along_axis(np.asarray(below), np.asarray(slots), -1)
    np.testing.assert_array_equal(got, np.arange(61)[None].repeat(2, 0) < position)
    assert int(below.sum()) == 2 * position


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "1 to 4 classes"),
        ([TokenClass(1, 1)], "tuple of TokenClass"),
        ((TokenClass(0.5, 1),), "sum to 1"),
        ((TokenClass(0.3333, 1), TokenClass(0.6667, 1)), "multiple of 0.001"),
        ((TokenClass(1, 9),), r"planes must lie in \[0, 8\]"),
        ((TokenClass(0.2, 1),) * 5, "1 to 4 classes"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        check_classes(classes)
