"""Score calibration in the fused kernel, of each step and static, emulated on the CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.attention.fused import score_range
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.launch import emulated_launch
from pallas_kernels.attention.tuning_configs import keeping_tuning
from tests.pallas_kernels.kernel_cases import (
    CODES,
    LEVELS,
    attend,
    check,
    recorded,
    stacked,
)
from tests.support.caches import (
    Shape,
    oracle,
    random_layer,
    relative_error,
    with_score_map,
)
from vkq_jax import KVQuantConfig, ScoreCalibration
from vkq_jax.attention.post_scaled import from_kv_heads, to_kv_heads
from vkq_jax.cache.visual_bank import VisualBank


@pytest.mark.parametrize("codes", ["levels, calibrated", "groups, calibrated"])
def test_a_calibration_of_one_query_takes_one_launch(codes):
    """Mapped query axes add queries of the same bank: each has a team of its own."""
    shape = Shape(head_dim=64, num_heads=2, visual=((700, (700, 33)),))
    query, layer = random_layer(shape, CODES[codes])
    specs, tuning = [], TuningConfig(8, 4)
    run = functools.partial(mosaic_gpu.attend_cache, launch=recorded(specs), tuning=tuning)
    queries = jnp.stack([query, 2 * query, -query])
    got = jax.vmap(run, (0, None))(queries, layer)
    assert all(spec.task == "attention" for spec in specs)  # as traced, and as mapped
    assert all(spec.calibration == CODES[codes].calibration for spec in specs)
    assert (specs[-1].queries, specs[-1].tuning.queries) == (3, 1)
    for number, one in enumerate(queries):
        expected = oracle(one, layer)
        assert relative_error(got.output[number], expected.output) < 3e-4
        np.testing.assert_array_equal(got.calibration_skipped[number], expected.calibration_skipped)


@pytest.mark.parametrize("tau1", [0.0, 4.0])
def test_a_calibration_of_one_visible_token(tau1):
    """One token has no range: the guard leaves it, also where the map would widen a range."""
    quant = KVQuantConfig(LEVELS, LEVELS, ScoreCalibration(tau1=tau1, tau2=3.0))
    shape = Shape(head_dim=64, num_heads=2, visual=((300, (300, 1)),))
    check(*random_layer(shape, quant), tuning=TuningConfig(8, 4))


def test_scores_are_kept_where_they_fit():
    """A long bank asks for a wide team; several queries, splits and the longest do not fit."""
    levels = Coding()

    def kept(positions, **tuning):
        return keeping_tuning(TuningConfig(16, **tuning), Packed(positions, levels, levels), 128)

    assert kept(2304, team=1) == TuningConfig(16, team=1)
    assert kept(32768, team=2) == TuningConfig(16, team=16)
    assert kept(65536, team=2) is None
    assert kept(2304, team=4, splits=2) is None
    assert kept(2304, team=4, queries=4) is None


@pytest.mark.parametrize(
    ("head_dim", "per_kv_head", "codes", "tuning"),
    [
        (128, 1, "signs, 16-bit scales, score bias", TuningConfig(4, 2)),
        (64, 3, "levels, calibrated", TuningConfig(4, 2, 2, queries=4)),
        (128, 8, "signs", TuningConfig(8, 4, queries=8)),
    ],
)
@pytest.mark.parametrize("text", [jnp.bfloat16, jnp.float32, jnp.int8])
def test_a_static_score_map_costs_no_launch(head_dim, per_kv_head, codes, tuning, text):
    """The layer is traced, queries have several positions; text for XLA is left alone."""
    shape = Shape(
        head_dim=head_dim, num_heads=2 * per_kv_head, num_queries=2, visual=((300, (300, 33)),)
    )
    query, layer = random_layer(shape, CODES[codes])
    cache = stacked(with_score_map(layer, shape.num_heads), 3)
    if text == jnp.int8:
        changed = cache.text.in_8_bits()
    else:
        changed = cache.text.map_arrays(lambda x: x.astype(text))
    cache = dataclasses.replace(cache, text=changed)
    specs = []
    run = functools.partial(mosaic_gpu.attend_layer, launch=recorded(specs), tuning=tuning)
    got = jax.jit(run)(query, cache, 1)
    (spec,) = specs
    assert spec.maps_scores
    expected = oracle(query, cache.layer(1))
    assert relative_error(got.output, expected.output) < 3e-4
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=3e-5, atol=3e-4)
    assert not got.calibration_skipped.any()


def test_a_querys_own_static_map_is_the_calibration_of_its_step():
    """The same slope and shift: found by the kernel at its step, or given."""
    shape = Shape(head_dim=64, batch=1, text=(5,), visual=((300, (33,)), (256, (256,))))
    query, layer = random_layer(shape, CODES["levels, calibrated"])
    rows = to_kv_heads(query * 64**-0.5, 2)
    banks = [
        VisualBank(*jax.tree.map(lambda x: x[None], (bank.key, bank.value)), bank.length)
        for bank in map(pallas_kernels.tile, layer.visual)
    ]
    found = [score_range(rows, bank, jnp.int32(0), emulated_launch) for bank in banks]
    own, _ = vkq_jax.settings.score_maps.score_map(
        functools.reduce(jnp.minimum, [lowest for lowest, _ in found]),
        functools.reduce(jnp.maximum, [highest for _, highest in found]),
        layer.quant.calibration,
    )
    own = jax.tree.map(lambda x: from_kv_heads(x[..., None], 1)[0, 0, :, 0], own)
    got, expected = attend(query, dataclasses.replace(layer, score_map=own)), attend(query, layer)
    np.testing.assert_array_equal(got.output, expected.output)
    np.testing.assert_array_equal(got.logsumexp, expected.logsumexp)
