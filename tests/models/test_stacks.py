"""Layers in buffers of their own: the same model, run block by block."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import models
from models.layers.layer_scan import UnstackedParam
from tests.support.tiny_llava import batch, prompt, tiny_model


def test_layers_apart_change_no_result():
    inputs = batch(prompt(3, "image", 5), prompt(2, "image", 1, seed=1))

    def run(model):
        return models.generate(model, inputs, quant="signs-1bit", max_new_tokens=4, stop_tokens=())

    got, expected = run(tiny_model().unstack_layers()), run(tiny_model())
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    for x, y in zip(jax.tree.leaves(got.cache), jax.tree.leaves(expected.cache), strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-5, atol=1e-5
        )


def test_taking_apart_uses_the_model_up_and_is_done_once():
    model = tiny_model()
    kernel = model.params["text"]["layers"]["self_attn"]["q_proj"]["kernel"][...]
    apart = model.unstack_layers()
    assert kernel.is_deleted()
    stacks = jax.tree.leaves(apart.params, is_leaf=lambda x: isinstance(x, UnstackedParam))
    assert sum(isinstance(x, UnstackedParam) for x in stacks) == 9
    again = apart.unstack_layers()
    assert jax.tree.leaves(again.params)[0] is jax.tree.leaves(apart.params)[0]


@pytest.mark.parametrize("layers_apart", [None, True])
def test_a_loaded_model_is_stored_alike(layers_apart, tmp_path):
    model = models.load("tiny", layers_apart=layers_apart)
    models.save_weights(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["language_model.model.layers.5.self_attn.q_proj.weight"].shape == (256, 256)
    assert len(stored) == len({*stored})


@pytest.mark.ci
def test_gradients_through_layers_apart():
    inputs = batch(prompt(3, "image", 5))

    def loss(model):
        return models.forward(model, inputs)[0, -1].sum()

    expected = jax.grad(loss)(tiny_model())
    got = jax.grad(loss)(tiny_model().unstack_layers())
    expected = expected.params["text"]["layers"]["self_attn"]["q_proj"]["kernel"][...]
    layers = got.params["text"]["layers"]["self_attn"]["q_proj"]["kernel"].get_value().layers
    np.testing.assert_allclose(np.stack(layers), expected, rtol=1e-4, atol=1e-5)
