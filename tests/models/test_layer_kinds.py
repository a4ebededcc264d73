"""Layers of one stack that differ, and outputs of several stacks in the order of layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers.layer_kinds import by_kind, in_layer_order
from models.text.coded_layers import ReadLayers, read_layers
from models.text.masks import prompt_masks
from tests.support.tiny_llava import CONFIG, batch, prompt


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


@pytest.mark.parametrize("in_windows", [False, True])
@pytest.mark.parametrize("beyond", [False, True])
def test_tokens_of_a_group_see_each_other_where_the_settings_say_so(in_windows, beyond):
    """Four tokens, the middle two of one group, windows of one token in all layers but one."""
    config = dataclasses.replace(
        CONFIG.text,
        sliding_window=1,
        full_layers=(1,),
        groups_in_windows=in_windows,
        groups_cross_window=beyond,
    )
    inputs = batch(prompt(4))
    inputs = dataclasses.replace(inputs, attention_group=jnp.asarray([[-1, 0, 0, -1]], jnp.int32))
    windowed, full = (np.asarray(prompt_masks(config, inputs)(layer)[0]) for layer in (0, 1))
    causal = np.tril(np.ones((4, 4), bool))
    group = np.zeros((4, 4), bool)
    group[1:3, 1:3] = True
    np.testing.assert_array_equal(full, causal if in_windows else causal | group)
    # Behind a token one of its group is near: a window has no end towards later tokens.
    near = ~np.tril(np.ones((4, 4), bool), -1)
    expected = (causal & near) | group if beyond else (causal | group) & near
    np.testing.assert_array_equal(windowed, expected)


def test_stacks_of_one_layer_read_their_own_codes():
    text = dataclasses.replace(CONFIG.text, cross_layers=(1,))
    assert read_layers(text) == {"cross_layers": ReadLayers(0, (1,), (0,))}
    assert read_layers(CONFIG.text) == {"layers": ReadLayers(0, (0, 1, 2), (0, 1, 2))}
