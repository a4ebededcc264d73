"""Caches and inputs put together by hand: what fits goes on, the rest is one clear error.

Unflattening checks nothing, since JAX puts objects of its own in place of leaves.
"""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import pallas_kernels
import vkq_jax
from models.prompts.arrays import inputs_from_arrays
from tests.hostile.test_cache_files import SETTINGS, unlike_caches, whole_cache

pytestmark = pytest.mark.usefixtures("as_users_run_it")

CHANGES = {
    "dtype": lambda x, rng: x.astype(rng.choice([jnp.float32, jnp.int32, jnp.uint32, bool])),
    "longer": lambda x, rng: jnp.concatenate([x, x], rng.randrange(x.ndim)),
    "shorter": lambda x, rng: jax.lax.slice_in_dim(x, 0, 1, axis=rng.randrange(x.ndim)),
    "more axes": lambda x, rng: x[None],
    "fewer axes": lambda x, rng: x[0],
    "turned": lambda x, rng: jnp.swapaxes(x, 0, -1),
    "on the host": lambda x, rng: np.asarray(x),
    "none": lambda x, rng: None,
    "text": lambda x, rng: "text",
    "an object": lambda x, rng: object(),
    "a number": lambda x, rng: 3,
    "its shape": lambda x, rng: jax.ShapeDtypeStruct(x.shape, x.dtype),
}


def changed(tree, rng):
    """The tree with one leaf changed, and the number and the name of the change."""
    leaves, structure = jax.tree.flatten(tree)
    number, name = rng.randrange(len(leaves)), rng.choice(sorted(CHANGES))
    leaves[number] = CHANGES[name](leaves[number], rng)
    return structure.unflatten(leaves), (number, name)


def uses_of_a_cache(cache, like):
    """Functions of the cache, for queries and tokens of the one that it was made from."""
    layers, heads = like.num_layers, like.num_kv_heads
    (batch,), head_dim = like.position.shape, like.parts[0].text.key.shape[-1]
    token, valid = jnp.ones((layers, batch, 1, heads, head_dim)), jnp.ones((batch, 1), bool)
    query = jnp.ones((batch, 1, 2 * heads, head_dim))
    bank = cache.parts[-1].visual[0]
    return [
        lambda: vkq_jax.append(vkq_jax.grow(cache, 20), token, token),
        lambda: vkq_jax.append(cache, token, token),
        lambda: vkq_jax.begin_decode(vkq_jax.grow(cache, 20), valid=valid),
        lambda: vkq_jax.begin_decode(cache, valid=valid),
        lambda: vkq_jax.begin_prefill(cache, valid=valid, visual=~valid),
        lambda: vkq_jax.cache_nbytes(cache),
        lambda: vkq_jax.heads_of_layer(cache, 0),
        lambda: vkq_jax.take_sequences(cache, [1]),
        lambda: vkq_jax.token_numbers(cache),
        lambda: vkq_jax.dequantize(bank.key),
        lambda: pallas_kernels.attend_layer(query, cache, 0),
        lambda: pallas_kernels.explain(cache),
        lambda: bank.of_layer(0).dequantize(),
        lambda: cache.layer(0),
        lambda: cache.parts[0].text.dequantize(),
        lambda: (repr(cache), cache._repr_html_()),
    ]


@pytest.fixture(scope="module")
def caches():
    return {"levels": whole_cache(SETTINGS["levels"], positions=True)} | unlike_caches()


def test_any_leaf_of_a_cache(cases, one_clear_error, caches):
    refused = 0
    for case in cases(12):
        rng = random.Random(f"handmade/{case}")
        like = caches[rng.choice(sorted(caches))]
        cache, _ = changed(like, rng)
        for use in rng.sample(uses_of_a_cache(cache, like), 2):
            try:
                use()
            except Exception as error:
                one_clear_error(error)
                refused += 1
    assert refused


def test_parts_of_two_caches(one_clear_error, caches):
    cache = caches["levels"]
    cut = vkq_jax.take_sequences(cache, [0, 1, 1])
    for part in ("text", "position", "calibration_skipped", "visual"):
        mixed = cache.__class__(
            **{f: getattr(cut if f == part else cache, f) for f in cache.__dataclass_fields__}
        )
        with pytest.raises(ValueError, match="cache") as error:
            vkq_jax.grow(mixed, 20)
        one_clear_error(error.value)


def test_any_leaf_of_inputs(cases, one_clear_error):
    like = inputs_from_arrays(models.read_config("tiny"), np.ones((2, 5), int))
    refused = 0
    for case in cases(30):
        inputs, _ = changed(like, random.Random(f"handmade inputs/{case}"))
        try:
            models.pad_to_multiple(inputs, 8)
        except Exception as error:
            one_clear_error(error)
            refused += 1
    assert refused


def test_what_fits_goes_on_under_every_transformation(caches):
    cache = caches["levels"]
    structure = jax.tree.structure(cache)
    assert jax.tree.structure(jax.tree.map(lambda x: None, cache)) != structure
    jax.tree.map(lambda x: object(), cache)
    several = jax.tree.map(lambda x: jnp.stack([x, x]), cache)
    lengths = jax.vmap(lambda c: vkq_jax.grow(c, 20).layer(0).text.dequantize()[0])(several)
    assert lengths.shape[0] == 2
    _, found = jax.lax.scan(lambda _, c: (None, vkq_jax.take_sequences(c, [1])), None, several)
    assert found.position.shape == (2, 1)
    with pytest.raises(ValueError, match="cache"):
        jax.jit(vkq_jax.grow, static_argnums=1)(jax.tree.map(lambda x: x[None], cache), 20)
