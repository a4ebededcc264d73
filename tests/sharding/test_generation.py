"""A model over a mesh does what it does on one device."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

import models
from models.sharding.placing import attention_axes
from tests.sharding.cases import BATCH, CONFIGS, KINDS, assert_same, inputs_of

MESHES = ["data=2,model=4", "model=8", "data=4,model=2"]
# Where heads are not split one kind of decoder is as good as another.
WHOLE = [("8 KV heads", "data=8"), ("experts", "data=8")]


def check(cases, name, mesh, quant="vkq-1bit", text_bits=None):
    one, many = (cases.generation(name, where, quant, text_bits) for where in (None, mesh))
    np.testing.assert_array_equal(many.tokens, one.tokens)
    assert_same(many.cache, one.cache)
    assert many.finite.all()
    axes = attention_axes(cases.model(name, mesh).mesh, BATCH)
    text = many.cache.text
    for x in jax.tree.leaves((many.cache.visual[0].key, text.key, text.key_scale)):
        expected = NamedSharding(cases.model(name, mesh).mesh, axes.of_layers)
        assert not x.size or x.sharding.is_equivalent_to(expected, x.ndim)


def test_tokens_and_codes_are_those_of_one_device(cases):
    check(cases, "2 KV heads, odd vocabulary", "data=2,model=4", "signs-1bit", 8)


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("name", "mesh"),
    [(name, mesh) for name in CONFIGS if name not in KINDS for mesh in MESHES] + WHOLE,
)
def test_every_mesh(cases, name, mesh):
    check(cases, name, mesh)
    one, many = cases.model(name), cases.model(name, mesh)
    np.testing.assert_allclose(
        models.forward(many, inputs_of(many)),
        models.forward(one, inputs_of(one)),
        atol=1e-4,
        rtol=1e-4,
    )
