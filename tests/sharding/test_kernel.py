"""The fused kernels under a mesh: lowered for GPUs, which need not be there."""

import re

import jax
import jax.numpy as jnp
import pytest

import vkq_jax
from models.generation.decode_loop import decode_step
from models.generation.prefill import prefill
from pallas_kernels.attention import mosaic_gpu
from tests.sharding.cases import BATCH, inputs_of


def launches(function, *arguments) -> list[list[str]]:
    """Shapes of the results of each launch in the function's StableHLO for GPUs."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    found = re.findall(r"custom_call @mosaic_gpu.* -> \((.*)\)", lowered.as_text())
    return [re.findall(r"tensor<(.*?)>", results) for results in found]


@pytest.mark.mesh
def test_each_device_launches_the_kernels_on_its_own_part(cases, monkeypatch):
    """Coding and attention of a layer are launched once in the program of each device."""
    monkeypatch.setattr(mosaic_gpu, "device_reason", lambda: None)
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
