"""Layers with a recurrent state beside layers with keys and values."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

import vkq_jax

LAYERS, BATCH, HEADS, DIM = 3, 2, 2, 4
VISUAL = jnp.asarray([[True, True, False]] * BATCH)


def states():
    values = jnp.arange(2 * BATCH * 5, dtype=jnp.float32).reshape(2, BATCH, 5)
    return vkq_jax.RecurrentState((values, jnp.zeros((2, BATCH, 1, 3))), layers=(0, 2))


def empty(**changes):
    sizes = {
        "num_layers": LAYERS,
        "batch": BATCH,
        "num_kv_heads": HEADS,
        "head_dim": DIM,
        "cache_length": 8,
        "dtype": jnp.float32,
        "quant": "signs-1bit",
        "recurrent": states(),
    }
    return vkq_jax.empty_cache(**(sizes | changes))


def run(passing, tokens, layers=range(LAYERS)):
    x = jax.random.normal(jax.random.key(0), (BATCH, tokens, HEADS, DIM))
    for layer in layers:
        if layer == 1:
            _, passing = passing.attend(layer, x, x, x)
        else:
            first, second = passing.state(layer)
            passing = passing.with_state(layer, (first + 1, second + layer))
    return passing


@pytest.fixture(scope="module")
def cache():
    begin = vkq_jax.begin_prefill(empty(), VISUAL, num_visual=2)
    filled = jax.jit(lambda passing: run(passing, 3).finish())(begin)
    return jax.jit(lambda cache: run(vkq_jax.begin_decode(cache), 1).finish())(filled)


def test_states_move_with_the_tokens(cache):
    first, second = cache.recurrent.values
    chex.assert_trees_all_equal(first, states().values[0] + 2)
    assert (second[0] == 0).all()
    assert (second[1] == 4).all()
    assert (cache.num_layers, cache.parts[0].num_layers) == (LAYERS, 1)
    assert cache.num_tokens.tolist() == [4, 4]
    assert cache.quant == cache.parts[0].quant
    size = vkq_jax.cache_nbytes(cache)
    assert size.recurrent == 2 * BATCH * (5 + 3) * 4
    assert size.total == size.visual + size.text + size.recurrent


def test_states_are_saved_taken_shared_and_kept_by_growing(cache, tmp_path):
    vkq_jax.save_cache(tmp_path / "cache", cache)
    chex.assert_trees_all_equal(vkq_jax.load_cache(tmp_path / "cache"), cache)
    one = vkq_jax.take_sequences(cache, [1])
    shared = vkq_jax.share_visual(vkq_jax.grow(one, 16), 3)
    expected = jnp.repeat(cache.recurrent.values[0][:, 1:], 3, axis=1)
    chex.assert_trees_all_equal(shared.recurrent.values[0], expected)
    assert shared.cache_length == 16


def test_what_does_not_fit_is_named(cache, tmp_path):
    step = vkq_jax.begin_decode(cache)
    with pytest.raises(ValueError, match=r"none of layers \[2\]"):
        run(step, 1, layers=(0, 1)).finish()
    with pytest.raises(ValueError, match=r"layer: expected one of \[0, 2\], got 1"):
        step.state(1)
    with pytest.raises(ValueError, match=r"expected a layer with keys, layer 2 has a state"):
        cache.layer(2)
    with pytest.raises(ValueError, match="no layers with a recurrent state"):
        vkq_jax.begin_decode(empty(recurrent=None, cross_layers=(0,))).state(0)
    with pytest.raises(ValueError, match=r"expected arrays \[2 layers, 3 sequences"):
        empty(batch=3)
    with pytest.raises(ValueError, match=r"recurrent.layers: expected some of the layers"):
        empty(num_layers=2)
    with pytest.raises(
        NotImplementedError, match="cross_layers and recurrent: expected one of them, got 2"
    ):
        empty(cross_layers=(1,))
    with pytest.raises(NotImplementedError, match="append: a model with several kinds of layers"):
        vkq_jax.append(cache, *jnp.zeros((2, 1, BATCH, 1, 1, 1)))
    few = vkq_jax.RecurrentState(tuple(x[:, :1] for x in states().values), (0, 2))
    with pytest.raises(ValueError, match=r"recurrent: expected arrays \[2, 2"):
        vkq_jax.save_cache(tmp_path / "cache", dataclasses.replace(cache, recurrent=few))
