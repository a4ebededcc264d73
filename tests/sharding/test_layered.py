"""Caches of several parts on a mesh: settings by layer or head, several kinds of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from tests.sharding.cases import BATCH, STEPS, assert_same, inputs_of
from tests.sharding.test_parts import CALIBRATED, later_turn
from vkq_jax.cache.any_cache import map_parts
from vkq_jax.sharding.bank_parts import join_banks

LAYERS = vkq_jax.per_layer("signs-1bit", {0: "none"})
HEADS = vkq_jax.per_layer("signs-1bit", {(0, 1): "none", ("all", 0): CALIBRATED})
MIXED = vkq_jax.per_layer("signs-1bit", {1: "none"})
CROSS, LINEAR, UNLIKE = "cross-attention", "linear attention", "other heads"


def pair(cases, quant, name, mesh, batch):
    """The answers of one device and of a mesh."""
    return [cases.generation(name, where, quant, 8, batch) for where in (None, mesh)]


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("quant", "name", "mesh", "batch"),
    [
        (LAYERS, "sliding window", "model=8", 3),
        (HEADS, "4 KV heads", "data=4,model=2", BATCH),
        (HEADS, "2 KV heads, odd vocabulary", "data=2,model=4", 2),
        ("signs-1bit", CROSS, "model=8", 3),
        ("signs-1bit", LINEAR, "model=4", 3),
        ("signs-1bit", LINEAR, "data=4", BATCH),
        (MIXED, CROSS, "data=2,model=2", BATCH),
        (MIXED, UNLIKE, "data=2,model=4", BATCH),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:24],
)
def test_parts_are_those_of_one_device(cases, quant, name, mesh, batch):
    expected, got = pair(cases, quant, name, mesh, batch)
    check_parts(got, expected, cases.model(name, mesh).mesh.size)


def check_parts(got, expected, devices):
    """Tokens, codes and bytes are those of one device, and each device has its own part."""
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert isinstance(got.cache, vkq_jax.LayeredCache)
    assert_same(map_parts(got.cache, join_banks), expected.cache)
    for part in got.cache.parts:
        for bank in part.visual:
            # No key lies twice.
            found = {shares(x) for x in jax.tree.leaves((bank.key, bank.value)) if x.size}
            assert found == {devices}
    for x in jax.tree.leaves(got.cache.recurrent):
        assert shares(x) == devices


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("quant", "name", "mesh", "batch", "other"),
    [
        (HEADS, "2 KV heads, odd vocabulary", "data=2,model=4", 2, "model=8"),
        ("signs-1bit", CROSS, "model=8", 3, "data=2,model=2"),
        ("signs-1bit", LINEAR, "model=4", 3, "data=4,model=2"),
    ],
    ids=["heads", CROSS, LINEAR],
)
def test_a_file_goes_to_any_mesh_and_on(cases, tmp_path, quant, name, mesh, batch, other):
    one, many = cases.model(name), cases.model(name, mesh)
    expected, start = (each.cache for each in pair(cases, quant, name, mesh, batch))
    vkq_jax.save_cache(tmp_path / "cache", start)
    assert_same(vkq_jax.load_cache(tmp_path / "cache"), expected)
    placed = models.load_cache(tmp_path / "cache", many.mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, start)
    for x, y in zip(jax.tree.leaves(placed), jax.tree.leaves(start), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim) or not x.size
    elsewhere = models.load_cache(tmp_path / "cache", other)
    assert_same(map_parts(elsewhere, join_banks), expected)
    question, options = later_turn(one.config, batch), {"max_new_tokens": 2, "stop_tokens": ()}
    answers = [
        models.generate(model, question, cache=cache, **options).tokens
        for model, cache in ((one, expected), (many, placed))
    ]
    np.testing.assert_array_equal(answers[1], answers[0])


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("quant", "name"),
    [(LAYERS, "4 KV heads"), ("signs-1bit", CROSS), ("signs-1bit", LINEAR)],
    ids=["layers", CROSS, LINEAR],
)
def test_layers_in_buffers_of_their_own(cases, quant, name):
    """As they are on GPUs, where each layer of a loop is known."""
    expected = cases.generation(name, None, quant, 8)
    apart = models.load(
        cases.folder / name, dtype=jnp.float32, mesh="data=2,model=2", layers_apart=True
    )
    options = {"quant": quant, "text_bits": 8, "max_new_tokens": STEPS, "stop_tokens": ()}
    got = models.generate(apart, inputs_of(apart), **options)
    check_parts(got, expected, 4)


@pytest.mark.mesh
@pytest.mark.parametrize("mesh", ["data=2,model=2", "model=4"])
@pytest.mark.parametrize("name", [CROSS, LINEAR, UNLIKE])
def test_logits_of_several_kinds_of_layers(cases, name, mesh):
    one, many = (
        models.forward(model, inputs_of(model))
        for model in (cases.model(name), cases.model(name, mesh))
    )
    np.testing.assert_allclose(many, one, atol=1e-4, rtol=1e-4)


def shares(x: jax.Array) -> int:
    """Devices that hold different parts of an array."""
    return x.size // np.prod(x.sharding.shard_shape(x.shape))
