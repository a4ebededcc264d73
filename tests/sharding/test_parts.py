"""Devices that share a KV head hold parts of its sequences where these are too few to share out."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

import models
import vkq_jax
from models.prompts.arrays import inputs_from_arrays
from models.sharding.placing import attention_axes
from tests.sharding.cases import STEPS, assert_same, inputs_of
from vkq_jax.cache.split_tensor import SplitTensor
from vkq_jax.sharding.bank_parts import join_banks

CALIBRATED = dataclasses.replace(
    vkq_jax.resolve("calibquant-1bit"), calibration=vkq_jax.ScoreCalibration(tau1=0.0, tau2=1e-3)
)
NAME, MESH = "2 KV heads, odd vocabulary", "data=2,model=4"
OPTIONS = {"max_new_tokens": STEPS, "stop_tokens": ()}


def bytes_per_device(tree) -> set[int]:
    """Bytes on each device."""
    devices = {}
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            devices[shard.device] = devices.get(shard.device, 0) + shard.data.nbytes
    return set(devices.values())


def check(cases, name, mesh, batch, quant, **options):
    """The caches of one device and of a mesh that has as many tokens, codes and bytes."""
    one, many = cases.model(name), cases.model(name, mesh)
    options = {"quant": quant} | OPTIONS | options
    expected = models.generate(one, inputs_of(one, batch), **options)
    got = models.generate(many, inputs_of(many, batch), **options)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert got.finite.all()
    (bank, *_), (whole, *_) = got.cache.visual, expected.cache.visual
    assert isinstance(bank.key, SplitTensor)
    assert_same(join_banks(got.cache), expected.cache)
    axes = attention_axes(many.mesh, batch)
    text = got.cache.text.key if axes.splits_text(got.cache.cache_length) else ()
    for x in jax.tree.leaves((bank.key, bank.value, text)):
        expected_sharding = NamedSharding(many.mesh, axes.of_parts)
        assert not x.size or x.sharding.is_equivalent_to(expected_sharding, x.ndim)
    # No key lies twice: every device has its part, filled up to as many positions.
    words = vkq_jax.cache.accounting._codes(bank.key), vkq_jax.cache.accounting._codes(whole.key)
    (own,), total = bytes_per_device(words[0]), sum(map(vkq_jax.pytree.nbytes, words[1:]))
    assert total / many.mesh.size <= own <= 2 * total / many.mesh.size
    return expected.cache, got.cache


def later_turn(config, batch):
    ids = np.random.default_rng(1).integers(13, 40, (batch, 4))
    return inputs_from_arrays(config, ids)


def test_few_sequences_are_split(cases):
    expected, cache = check(cases, NAME, MESH, 2, "signs-1bit")
    assert vkq_jax.cache_nbytes(cache).text == vkq_jax.cache_nbytes(expected).text


@pytest.mark.mesh
def test_a_cache_goes_on_whole_or_in_parts(cases):
    """Four sequences divide the devices: their banks become whole. Of two they are in parts."""
    one, many = cases.model(NAME), cases.model(NAME, MESH)
    expected, cache = check(cases, NAME, MESH, 2, "signs-1bit")
    for order, kind in (([1, 0, 0, 1], vkq_jax.SignTensor), ([0, 2], SplitTensor)):
        question = later_turn(one.config, len(order))
        expected, cache = (
            models.generate(model, question, cache=vkq_jax.take_sequences(start, order), **OPTIONS)
            for model, start in ((one, expected), (many, cache))
        )
        np.testing.assert_array_equal(cache.tokens, expected.tokens)
        expected, cache = expected.cache, cache.cache
        assert isinstance(cache.visual[0].key, kind)
        assert_same(join_banks(cache), expected)


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("name", "mesh", "batch", "quant"),
    [
        ("1 KV head", "model=8", 1, CALIBRATED),
        ("sliding window", "model=8", 3, "kivi-2bit"),
        ("experts", "model=8", 3, "signs-1bit"),
        ("key bias", "data=2,model=4", 2, "vkq-1bit"),
    ],
)
def test_every_kind(cases, name, mesh, batch, quant):
    check(cases, name, mesh, batch, quant)


@pytest.mark.mesh
def test_files_and_a_static_score_map(cases, tmp_path):
    name, mesh = "1 KV head", "model=8"
    model = cases.model(name)
    slope = np.linspace(0.5, 1.0, 2 * 8, dtype=np.float32).reshape(2, 8)
    static = vkq_jax.ScoreMap(jax.numpy.asarray(slope), jax.numpy.asarray(1 - slope))
    expected, cache = check(
        cases, name, mesh, 1, "quantile-1bit", score_map=static, cache_length=22
    )
    vkq_jax.save_cache(tmp_path / "cache", cache)
    loaded = vkq_jax.load_cache(tmp_path / "cache")
    assert_same(loaded, expected)
    placed = models.load_cache(tmp_path / "cache", mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, cache)
    assert bytes_per_device(placed.visual) == bytes_per_device(cache.visual)
    question = later_turn(model.config, 1)
    answers = [
        models.generate(cases.model(name, mesh), question, cache=start, **OPTIONS)
        for start in (cache, loaded)
    ]
    np.testing.assert_array_equal(answers[0].tokens, answers[1].tokens)
    assert isinstance(answers[1].cache.visual[0].key, SplitTensor)
