"""The fused kernels under a mesh: lowered for GPUs, which need not be there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.decode_step import decode_step
from models.generation.prefill import prefill
from pallas_kernels import TiledSigns
from pallas_kernels.attention import support
from tests.models.test_generate_fused import fused  # noqa: F401  # a fixture
from tests.sharding.cases import BATCH, inputs_of


def launches(function, *arguments) -> list[list[str]]:
    """Shapes of the results of each launch in the function's StableHLO for GPUs."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    found = re.findall(r"custom_call @mosaic_gpu.* -> \((.*)\)", lowered.as_text())
    return [re.findall(r"tensor<(.*?)>", results) for results in found]


@pytest.mark.mesh
def test_each_device_launches_the_kernels_on_its_own_part(cases, monkeypatch):
    """Coding and attention of a layer are launched once in the program of each device."""
    monkeypatch.setattr(support, "device_reason", lambda: None)
    model = cases.model("heads of 64", "data=2,model=4")
    options = {"quant": vkq_jax.presets["signs-1bit"], "cache_length": 20}
    inputs = inputs_of(model)
    _, cache = jax.eval_shape(lambda *of: prefill(*of, **options), model, inputs)
    prefilling = launches(lambda *of: prefill(*of, **options), model, inputs)
    decoding = launches(decode_step, model, jnp.zeros(BATCH, jnp.int32), cache)
    # A device has 4 sequences, one KV head and two query heads of a layer. Keys and values are
    # coded in two launches each, the first of which sums up the centres.
    sums, keys, values = "4x1x64xf32", "4x128xui32", "4x256xui32"
    assert [results[0] for results in prefilling] == [sums, keys, sums, values]
    assert decoding == [["8x64xf32", "8xf32"]]


@pytest.mark.mesh
def test_each_device_launches_attention_on_its_part_of_a_sequence(cases, monkeypatch):
    monkeypatch.setattr(support, "device_reason", lambda: None)
    model = cases.model("heads of 64", "model=8")
    options = {"quant": vkq_jax.presets["signs-1bit"], "cache_length": 20}
    _, cache = jax.eval_shape(lambda *of: prefill(*of, **options), model, inputs_of(model, 1))
    decoding = launches(decode_step, model, jnp.zeros(1, jnp.int32), cache)
    # One KV head, and the query heads of both devices that share it.
    assert decoding == [["2x64xf32", "2xf32"]]


@pytest.mark.mesh
@pytest.mark.parametrize(("mesh", "batch"), [("data=2,model=4", 2), ("model=8", 1)])
def test_emulated_kernels_give_the_tokens_of_xla(cases, fused, mesh, batch):  # noqa: F811
    one, many = cases.model("heads of 64"), cases.model("heads of 64", mesh)
    options = {"max_new_tokens": 2, "stop_tokens": (), "quant": "signs-1bit", "bucketing": False}
    expected = models.generate(one, inputs_of(one, batch), implementation="xla", **options)
    got = models.generate(many, inputs_of(many, batch), **options)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    (bank,) = got.cache.visual
    parts = bank.key.parts if batch == 1 else bank.key
    assert isinstance(parts, TiledSigns)
