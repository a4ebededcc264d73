"""Caches of several parts on a mesh: settings by layer or head, several kinds of layers."""

import jax
import numpy as np
import pytest

import models
import vkq_jax
from tests.sharding.cases import BATCH, STEPS, assert_same, inputs_of
from tests.sharding.test_parts import CALIBRATED, later_turn
from vkq_jax.bank_parts import join_banks
from vkq_jax.layered import map_parts

LAYERS = vkq_jax.per_layer("signs-1bit", {0: "none"})
HEADS = vkq_jax.per_layer("signs-1bit", {(0, 1): "none", ("all", 0): CALIBRATED})
CROSS, LINEAR = "cross-attention", "linear attention"
OPTIONS = {"max_new_tokens": STEPS, "stop_tokens": ()}


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("quant", "name", "mesh", "batch", "other"),
    [
        (LAYERS, "4 KV heads", "data=2,model=4", BATCH, "data=4,model=2"),
        (LAYERS, "sliding window", "model=8", 3, "model=4"),
        (HEADS, "4 KV heads", "data=4,model=2", BATCH, "data=8"),
        (HEADS, "2 KV heads, odd vocabulary", "data=2,model=4", 2, "model=8"),
        ("signs-1bit", CROSS, "data=2,model=2", BATCH, "model=4"),
        ("signs-1bit", CROSS, "model=8", 3, "data=2,model=2"),
        ("signs-1bit", LINEAR, "data=2,model=2", BATCH, "model=4"),
        ("signs-1bit", LINEAR, "model=4", 3, "data=4,model=2"),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:24],
)
def test_parts_are_those_of_one_device(cases, tmp_path, quant, name, mesh, batch, other):
    """And go into a file and from it to any mesh, and on from there."""
    one, many = cases.model(name), cases.model(name, mesh)
    expected, got = (
        models.generate(model, inputs_of(model, batch), quant=quant, text_bits=8, **OPTIONS)
        for model in (one, many)
    )
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert isinstance(got.cache, vkq_jax.LayeredCache)
    assert_same(map_parts(got.cache, join_banks), expected.cache)
    for part in got.cache.parts:
        for bank in part.visual:
            # No key lies twice: each device has its own part of everything.
            found = {shares(x) for x in jax.tree.leaves((bank.key, bank.value)) if x.size}
            assert found == {many.mesh.size}
    for x in jax.tree.leaves(got.cache.recurrent):
        assert shares(x) == many.mesh.size

    vkq_jax.save_cache(tmp_path / "cache", got.cache)
    assert_same(vkq_jax.load_cache(tmp_path / "cache"), expected.cache)
    placed = models.load_cache(tmp_path / "cache", many.mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, got.cache)
    for x, y in zip(jax.tree.leaves(placed), jax.tree.leaves(got.cache), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim) or not x.size
    elsewhere = models.load_cache(tmp_path / "cache", other)
    assert_same(map_parts(elsewhere, join_banks), expected.cache)
    question = later_turn(one.config, batch)
    answers = [
        models.generate(model, question, cache=cache, **OPTIONS).tokens
        for model, cache in ((one, expected.cache), (many, placed))
    ]
    np.testing.assert_array_equal(answers[1], answers[0])


@pytest.mark.mesh
@pytest.mark.parametrize("mesh", ["data=2,model=2", "model=4"])
@pytest.mark.parametrize("name", [CROSS, LINEAR])
def test_logits_of_several_kinds_of_layers(cases, name, mesh):
    one, many = (
        models.forward(model, inputs_of(model))
        for model in (cases.model(name), cases.model(name, mesh))
    )
    np.testing.assert_allclose(many, one, atol=1e-4, rtol=1e-4)


def shares(x: jax.Array) -> int:
    """Devices that hold different parts of an array."""
    return x.size // np.prod(x.sharding.shard_shape(x.shape))
