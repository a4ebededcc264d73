"""Layers with heads of another number and size, and layers that read another layer's keys."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax

SIZES = {0: (2, 8), 1: (1, 16), 2: (2, 8)}  # of each layer: KV heads, channels
VISUAL = jnp.asarray([[True, True, False, False]])
CODES = "minmax-1bit"
UNLIKE = vkq_jax.LayerSizes((1,), 1, 16)


def tensors(layer, tokens, seed=0):
    """Query, key and value of a layer."""
    heads, channels = SIZES[layer]
    rng = np.random.default_rng([seed, layer])
    shapes = ((1, tokens, 4, channels), *[(1, tokens, heads, channels)] * 2)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def empty(layers, other_layers=None, quant=CODES):
    heads, channels = SIZES[layers[0]]
    return vkq_jax.empty_cache(
        num_layers=len(layers),
        batch=1,
        num_kv_heads=heads,
        head_dim=channels,
        cache_length=4,
        quant=quant,
        dtype=jnp.float32,
        other_layers=other_layers,
    )


@partial(jax.jit, static_argnames=("layers", "first"))
def run(cache, layers, first):
    """A prompt, then a token; the last layer is read once more. Outputs, and the cache."""
    outputs = []
    for tokens, seed in ((4, 0), (1, 1)):
        if seed == 0:
            step = vkq_jax.begin_prefill(cache, VISUAL, num_visual=2)
        else:
            step = vkq_jax.begin_decode(cache)
        for layer in layers:
            output, step = step.attend(layer - first, *tensors(layer, tokens, seed))
            outputs.append(output)
        last = layers[-1]
        again, step = step.attend(last - first, *tensors(last, tokens, seed), kv_shared=True)
        outputs.append(again)
        cache = step.finish()
    return outputs, cache


def test_each_layer_does_what_it_does_in_a_cache_of_its_size(tmp_path):
    outputs, cache = run(empty((0, 1, 2), UNLIKE), (0, 1, 2), 0)
    (alone, again, *later), own = run(empty((1,)), (1,), 1)
    chex.assert_trees_all_close([outputs[1], outputs[5]], [alone, later[0]], atol=1e-5)
    chex.assert_trees_all_close([outputs[3], outputs[7]], [outputs[2], outputs[6]], atol=1e-5)
    chex.assert_trees_all_close(again, alone, atol=1e-5)
    chex.assert_trees_all_close(cache.layer(1), own.layer(0), atol=1e-5)
    assert cache.quant == own.quant
    assert cache.num_layers == 3
    assert "2 of 8 channels, 1 of 16 channels" in repr(cache)
    sizes = vkq_jax.cache_nbytes(cache), vkq_jax.cache_nbytes(own)
    assert sizes[0].text == 3 * sizes[1].text
    file = tmp_path / "cache.safetensors"
    vkq_jax.save_cache(file, cache)
    chex.assert_trees_all_equal(vkq_jax.load_cache(file), cache)


def test_layers_of_both_sizes_have_settings_of_their_own(tmp_path):
    settings = vkq_jax.per_layer(CODES, {1: "none", 2: "none"})
    got, cache = run(empty((0, 1, 2), UNLIKE, settings), (0, 1, 2), 0)
    assert [cells.layers for cells in cache.cells] == [(0,), (2,), (1,)]
    assert cache.quant == settings.settle(3, 2)
    for quant, layers in ((CODES, (0,)), ("none", (1, 2, 3))):  # 3: layer 2 once more
        alone, _ = run(empty((0, 1, 2), UNLIKE, quant), (0, 1, 2), 0)
        for layer in layers:
            chex.assert_trees_all_close(got[layer::4], alone[layer::4], atol=1e-5)
    file = tmp_path / "cache.safetensors"
    vkq_jax.save_cache(file, cache)
    chex.assert_trees_all_equal(vkq_jax.load_cache(file), cache)
    with pytest.raises(NotImplementedError, match="append: a model with several kinds of layers"):
        vkq_jax.append(cache, *jnp.zeros((2, 3, 1, 1, 2, 8)))
    with pytest.raises(ValueError, match="given: expected the settings of the parts"):
        vkq_jax.save_cache(file, dataclasses.replace(cache, given=None))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"other_layers": vkq_jax.LayerSizes((3,), 1, 16)},
            ValueError,
            "other_layers.layers: expected some",
        ),
        (
            {"other_layers": UNLIKE, "cross_layers": (0,)},
            NotImplementedError,
            "cross_layers and other_layers: expected one of them, got 2",
        ),
        (
            {
                "other_layers": vkq_jax.LayerSizes((1,), 1, 16),
                "quant": vkq_jax.per_head(CODES, {0: "none"}),
            },
            NotImplementedError,
            "settings of whole layers for a model whose layers have 2 or 1 KV heads",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options, error, message):
    sizes = {"num_layers": 3, "batch": 1, "num_kv_heads": 2, "head_dim": 8, "cache_length": 4}
    with pytest.raises(error, match=message):
        vkq_jax.empty_cache(**sizes, **options)


def test_keys_of_no_layer_s_size_are_refused():
    cache = empty((0, 1, 2), UNLIKE)
    step = vkq_jax.begin_prefill(cache, VISUAL, num_visual=2)
    with pytest.raises(ValueError, match=r"key: expected \[B, T, K, H\] with K and H of"):
        step.attend(0, jnp.zeros((1, 4, 4, 4)), *[jnp.zeros((1, 4, 2, 4))] * 2)
