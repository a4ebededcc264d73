"""Caches, tensors, models and answers say what they are in a line or a small table."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from tests.support.tiny_llava import batch, prompt, tiny_model
from vkq_jax.cache.summaries import codes_name


@pytest.fixture(scope="module")
def generation():
    inputs = batch(prompt(3, "image", 5), prompt(2, "image", 1, seed=1))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run = partial(models.generate, tiny_model(), inputs, quant="vkq-1bit", max_new_tokens=3)
        return jax.eval_shape(run)


def test_a_cache_says_what_it_holds_and_saves(generation):
    cache = generation.cache
    text = repr(cache)
    saved = f"{vkq_jax.cache_nbytes(cache).visual_reduction:.1%} saved"
    for part in ("vkq-1bit", "layers: 3", "KV heads: 2 of 16 channels", "room for 16", saved):
        assert part in text
    assert len(text) < 400
    assert len(repr(generation)) < 500
    assert repr(generation).endswith(f"; cache: {text})")
    assert repr(cache.visual[0].key).startswith("DictionaryTensor(elements: 3072; bytes: ")


@pytest.mark.parametrize("name", ["cache", "tensor", "generation", "model", "bytes"])
def test_a_notebook_shows_a_small_table(generation, name):
    shown = {
        "cache": generation.cache,
        "tensor": generation.cache.visual[0].key,
        "generation": generation,
        "model": tiny_model(),
        "bytes": vkq_jax.cache_nbytes(generation.cache),
    }[name]
    table = shown._repr_html_()
    assert table.startswith("<table>")
    assert type(shown).__name__ in table
    assert table.count("<table>") == table.count("</table>") == 1 + (name == "generation")
    assert 2 <= table.count("<tr>") <= 12
    assert len(table) < 2000


def test_other_pytrees_name_their_arrays(generation):
    length = generation.cache.cache_length
    assert f"key=float32[3,2,2,{length},16], value=float32" in repr(generation.cache.text)
    assert generation.cache.text._repr_html_() is None
    assert len(repr(generation.cache.layer)) < 500


def test_a_layer_says_what_it_holds():
    sizes = {"num_layers": 2, "batch": 1, "num_kv_heads": 2, "head_dim": 8, "cache_length": 4}
    cache = vkq_jax.append(
        vkq_jax.empty_cache(**sizes, quant="none"), *[jnp.ones((2, 1, 3, 2, 8), jnp.bfloat16)] * 2
    )
    assert repr(cache.layer(1)) == (
        "LayerCache(codes: none; sequences: 1; KV heads: 2 of 8 channels; "
        "text: 3, room for 4 a sequence in bfloat16, 256 B)"
    )


def test_no_pytree_is_an_array():
    """NumPy would make an array of one object, and fail far from here."""
    coded = vkq_jax.quantize(jnp.ones((4, 8)), vkq_jax.SignCodes())
    with pytest.raises(TypeError, match=r"the pytree SignTensor: its method dequantize\(\) gives"):
        np.asarray(coded)
    with pytest.raises(TypeError, match=r"the pytree ScoreMap: its fields are slope, shift"):
        jnp.asarray(vkq_jax.ScoreMap(*[jnp.ones(2)] * 2))


def test_a_model_is_short():
    assert repr(tiny_model()).startswith("Model(family: llava; text tower: 3 layers")
    assert len(repr(tiny_model())) < 300


def test_tracers_and_whatever_jax_puts_in_place_of_arrays_are_shown(generation):
    seen = []

    def look(cache):
        seen.append(repr(cache) + repr(cache.text) + str(cache._repr_html_()))
        return cache.position

    empty = vkq_jax.empty_cache(num_layers=2, batch=1, num_kv_heads=1, head_dim=8, cache_length=3)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), empty)
    jax.eval_shape(look, empty)
    jax.eval_shape(jax.vmap(look), stacked)
    assert seen[0] == seen[1]
    assert "room for 3 a sequence in bfloat16" in seen[0]
    for leaf in (0, None, object()):
        assert repr(jax.tree.map(lambda x, leaf=leaf: leaf, empty)).startswith("KVCache(visual=()")
    assert "int32[2,1]" in repr(stacked)
    length = jnp.asarray([3], jnp.int32)
    cache = vkq_jax.append(empty, *[jnp.ones((2, 1, 3, 1, 8), jnp.bfloat16)] * 2)
    assert "text: 3, room for 3" in repr(cache)
    assert repr(vkq_jax.ScoreMap(length.astype(jnp.float32), jnp.ones(1))) == (
        "ScoreMap(slope=float32[1], shift=float32[1])"
    )


def test_codes_of_ones_own_are_named_by_their_types():
    quant = vkq_jax.KVQuantConfig(key=vkq_jax.LevelCodes(bits=4), value=vkq_jax.SignCodes())
    cache = vkq_jax.empty_cache(
        num_layers=1, batch=1, num_kv_heads=1, head_dim=8, cache_length=3, quant=quant
    )
    assert "codes: keys LevelCodes, values SignCodes" in repr(cache)


@pytest.mark.parametrize("name", vkq_jax.calibrated_presets)
def test_codes_of_a_calibrated_model_have_their_presets_name(name):
    assert codes_name(vkq_jax.presets[name]) == name
    for plan in vkq_jax.calibrated_presets[name]:
        assert codes_name(plan) == f"{name}, calibrated"
