"""Steps behind an answer, text in 8 bits: more turns, other sequences, files, other meshes."""

import math

import jax
import numpy as np
import pytest

import models
import vkq_jax
from models.prompts.arrays import inputs_from_arrays
from tests.sharding.cases import BATCH, STEPS, assert_same
from vkq_jax.files import sliced_arrays
from vkq_jax.sharding.hosts import array_from_shards

NAME, MESH, QUANT = "2 KV heads, odd vocabulary", "data=2,model=4", "signs-1bit"


def later_turn(config, batch):
    ids = np.random.default_rng(1).integers(13, config.text.vocab_size, (batch, 4))
    return inputs_from_arrays(config, ids)


@pytest.mark.mesh
def test_a_file_is_read_straight_to_a_mesh(cases, tmp_path, monkeypatch):
    file, mesh = tmp_path / "cache", cases.model(NAME, MESH).mesh
    start = cases.generation(NAME, MESH, QUANT).cache
    vkq_jax.save_cache(file, start)
    sizes = []

    def recorded(shape, sharding, part):
        def counted(index):
            values = part(index)
            sizes.append((len(shape) > 2, math.prod(shape), values.size))
            return values

        return array_from_shards(shape, sharding, counted)

    monkeypatch.setattr(sliced_arrays, "array_from_shards", recorded)
    placed = models.load_cache(file, mesh)
    for x, y in zip(jax.tree.leaves(placed), jax.tree.leaves(start), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_array_equal(x, y)
    # The host has had an eighth of any bank at a time, and each once.
    assert {whole // own for of_bank, whole, own in sizes if of_bank and whole} == {8}
    assert sum(own for _, _, own in sizes) <= sum(x.size for x in jax.tree.leaves(start)) + 64

    other = models.load_cache(file, "data=8")
    assert other.text.key.sharding.shard_shape(other.text.key.shape)[1:3] == (1, 2)
    with pytest.raises(ValueError, match=r"cache: mesh axis model=3 .*num_key_value_heads=2"):
        models.load_cache(file, "model=3")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cache is damaged: its contents are not those"):
        models.load_cache(file, mesh)


@pytest.mark.mesh
def test_a_cache_goes_on_where_it_is_taken_to(cases, tmp_path):
    one, many = cases.model(NAME), cases.model(NAME, MESH)
    file = tmp_path / "cache"
    vkq_jax.save_cache(file, cases.generation(NAME, MESH, QUANT, 8).cache)
    loaded = vkq_jax.load_cache(file)
    assert_same(loaded, cases.generation(NAME, None, QUANT, 8).cache)

    order = [3, 1, 0, 0, 5, 7, 7, 2]
    start = cases.generation(NAME, MESH, QUANT, 8).cache
    taken = vkq_jax.take_sequences(start, order)
    for x, y in zip(jax.tree.leaves(taken), jax.tree.leaves(start), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    few = vkq_jax.take_sequences(start, order[:3])
    assert_same(few, vkq_jax.take_sequences(loaded, order[:3]))
    assert few.text.key.sharding.shard_shape(few.text.key.shape)[1:3] == (3, 1)

    question = later_turn(one.config, BATCH)
    options = {"max_new_tokens": STEPS, "stop_tokens": ()}
    expected = models.generate(
        one, question, cache=vkq_jax.take_sequences(loaded, order), **options
    )
    answer = models.generate(many, question, cache=taken, **options)
    np.testing.assert_array_equal(answer.tokens, expected.tokens)
    assert_same(answer.cache, expected.cache)
    # The file's cache lies on one device; so would one of another mesh.
    *_, last = models.stream(
        many, question, cache=vkq_jax.take_sequences(loaded, order), chunk=STEPS, **options
    )
    np.testing.assert_array_equal(last.tokens, expected.tokens)
