"""Layers of one stack that differ, and outputs of several stacks in the order of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers.layer_kinds import by_kind, in_layer_order


@pytest.mark.parametrize("full", [(), (1,), (0, 2), (0, 1, 2)])
def test_full_layers_take_their_own_arrays(full):
    kinds = {"table": jnp.zeros(2)}, {"table": jnp.ones(2)}
    chosen = jax.jit(lambda layer: by_kind(full, layer, *kinds))
    got = [int(chosen(layer)["table"].max()) for layer in range(3)]
    assert got == [int(layer in full) for layer in range(3)]


def test_without_full_layers_there_need_be_nothing_of_them():
    windowed = {"table": jnp.zeros(2)}
    assert by_kind((), jnp.int32(0), windowed, None) is windowed


@pytest.mark.parametrize("ran", [("text",), ("cross",), ("text", "cross"), ("cross", "text")])
def test_outputs_of_stacks_are_in_the_order_of_layers(ran):
    stacks = {"text": (0, 2, 3), "cross": (1, 4)}
    outputs = {name: {"x": jnp.asarray(stacks[name])} for name in ran}
    got = in_layer_order(stacks, outputs)["x"]
    np.testing.assert_array_equal(got, sorted(number for name in ran for number in stacks[name]))
