"""`vmap`, gradients and `shard_map` of the fused kernel, emulated on the CPU."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
import vkq_jax.attention.reference
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.launch import emulated_launch
from tests.pallas_kernels.kernel_cases import (
    CODES,
    attend,
    layer_of,
)
from tests.support.caches import (
    Shape,
    random_layer,
    random_starts,
    relative_error,
    with_score_map,
)


@pytest.mark.parametrize(
    ("head_dim", "codes"),
    [
        (64, "levels"),
        (64, "levels, calibrated"),
        pytest.param(64, "levels, static map", marks=pytest.mark.ci),
        pytest.param(96, "signs", marks=pytest.mark.ci),
        (96, "signs, static map"),
    ],
)
def test_vmap_folds_the_axis_into_one_launch(head_dim, codes):
    codes, *static = codes.split(", static map")
    query, layer = random_layer(Shape(head_dim=head_dim, num_heads=2), CODES[codes])
    other = random_layer(Shape(head_dim=head_dim, num_heads=2), CODES[codes], seed=1)[1]
    if static:
        layer, other = (with_score_map(x, 2) for x in (layer, other))
    queries, layers = (
        jnp.stack([query, -query]),
        jax.tree.map(lambda *x: jnp.stack(x), layer, other),
    )
    shapes = []

    def counted(spec, operands):
        shapes.append((spec.outer, spec.batch, spec.queries))
        return emulated_launch(spec, operands)

    def run(q, c):
        return mosaic_gpu.attend_cache(q, c, launch=counted).output

    one_by_one = jnp.stack([run(queries[i], c) for i, c in enumerate((layer, other))])
    shapes.clear()
    np.testing.assert_allclose(jax.vmap(run)(queries, layers), one_by_one, rtol=1e-5, atol=1e-5)
    assert shapes[-1] == (2, 2, 1)
    shapes.clear()
    got = jax.vmap(run, in_axes=(0, None))(queries, layer)
    assert relative_error(got[0], one_by_one[0]) < 3e-4  # other instructions, for two queries
    assert shapes[-1] == (1, 2, 2)


@pytest.mark.parametrize(
    "codes", [pytest.param("signs", marks=pytest.mark.ci), "levels, calibrated"]
)
def test_vmap_over_starts(codes):
    """Mapped queries with mapped starts over one bank, and over mapped ones."""
    shape = Shape(head_dim=64, num_heads=2, num_queries=2, visual=((300, (300, 270)),))
    (query, layer), (_, other) = (random_layer(shape, CODES[codes], seed) for seed in range(2))
    both = [random_starts(query, layer, seed) for seed in range(2)]
    starts, layers = (jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (both, (layer, other)))

    def run(layer, starts):
        return attend(query, layer, starts=starts).output

    for bank_axis, mapped in ((None, layer), (0, layers)):
        got = jax.vmap(run, in_axes=(bank_axis, 0))(mapped, starts)
        for i, one in enumerate((layer, layer if bank_axis is None else other)):
            assert relative_error(got[i], run(one, both[i])) < 3e-4


@pytest.mark.parametrize(
    ("shape", "soft_cap", "windowed"),
    [
        ("one query head, small heads", None, False),
        ("one query head, small heads", 5.0, True),
        ("three query heads, 80 channels", None, False),
    ],
)
@pytest.mark.ci
def test_gradients_equal_the_oracles(shape, soft_cap, windowed):
    """By queries, text and, where there is no cap, a score map."""
    query, layer, _ = layer_of(shape, "signs")
    if soft_cap is None:
        layer = with_score_map(layer, query.shape[2])
    options = {
        "starts": random_starts(query, layer) if windowed else None,
        "logits_soft_cap": soft_cap,
    }

    def loss(inputs, attend):
        query, text_key, text_value, score_map = inputs
        text = dataclasses.replace(layer.text, key=text_key, value=text_value)
        changed = dataclasses.replace(layer, text=text, score_map=score_map)
        return jnp.sum(jnp.sin(attend(query, changed, **options).output))

    inputs = (query, layer.text.key, layer.text.value, layer.score_map)
    got = jax.grad(loss)(inputs, attend)
    expected = jax.grad(loss)(inputs, vkq_jax.attention.reference.attend_cache)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert relative_error(g, e) < 1e-3


@pytest.mark.ci
def test_shards_over_batch_and_heads(tmp_path):
    """`shard_map` needs two devices, which a process has from its start."""
    script = tmp_path / "shards.py"
    script.write_text(
        """
import functools, jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.launch import emulated_launch
from tests.pallas_kernels.kernel_cases import CODES, stacked
from tests.support.caches import Shape, random_layer
shape = Shape(head_dim=64, num_heads=4, visual=((300, (300, 33)),))
query, layer = random_layer(shape, CODES["signs"])
cache = stacked(layer, 2)
run = functools.partial(mosaic_gpu.attend_layer, launch=emulated_launch)
def attend(query, cache):
    return run(query, cache, 1).output
expected = jax.jit(attend)(query, cache)
mesh = jax.make_mesh((2,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,))
per_sequence = jax.tree.map(lambda x: P("shard") if x.ndim == 1 else P(None, "shard"), cache)
per_head = jax.tree.map(lambda x: P() if x.ndim == 1 else P(None, None, "shard"), cache)
for query_spec, cache_spec in ((P("shard"), per_sequence), (P(None, None, "shard"), per_head)):
    sharded = jax.shard_map(
        attend, mesh=mesh, in_specs=(query_spec, cache_spec), out_specs=query_spec, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(sharded)(query, cache), expected, rtol=1e-5, atol=1e-5)
print("equal")
"""
    )
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    result = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip().endswith("equal"), result.stderr
