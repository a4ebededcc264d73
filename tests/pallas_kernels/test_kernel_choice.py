"""Which implementation a call takes, how its work is cut, and what `explain` says of it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.reference
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.kernel_spec import Coding, Dense, KernelSpec, Packed, TuningConfig
from pallas_kernels.attention.launch import emulated_launch
from pallas_kernels.attention.tuning_configs import choose_tuning
from tests.pallas_kernels.kernel_cases import (
    CODES,
    LEVELS,
    SIGNS,
    attend,
    stacked,
)
from tests.support.caches import (
    Shape,
    random_layer,
    with_score_map,
)
from vkq_jax import KVQuantConfig, LevelCodes, ScoreCalibration


def test_the_choice_is_visible():
    layer = random_layer(Shape(head_dim=64), CODES["signs"])[1]
    if jax.default_backend() == "cpu":
        assert pallas_kernels.choose_implementation(None, layer) == "xla"
        assert "needs an NVIDIA GPU" in pallas_kernels.explain(layer)
        with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
            pallas_kernels.choose_implementation("mosaic_gpu", layer)


def test_what_the_kernel_does_not_cover_is_said():
    def reason(**changes):
        shape = Shape(**{"head_dim": 64, "visual": ((300, (300, 3)),)} | changes)
        return lambda quant: mosaic_gpu.unsupported_reason(random_layer(shape, quant)[1])

    signs = CODES["signs"]
    assert reason()(signs) is None
    assert "dense banks in float32" in reason(visual=())(signs)
    assert reason(head_dim=80)(signs) is None
    assert reason(head_dim=160)(signs) is None
    assert reason(head_dim=257)(signs) == "head_dim 257 is above 256"
    assert "8-bit" in reason()(KVQuantConfig(LevelCodes(bits=8), LEVELS))
    assert "group of 64" in reason()(KVQuantConfig(LevelCodes(group_size=64), LEVELS))
    assert "per token" in reason()(vkq_jax.presets["quantile-1bit"])
    assert "1.6-bit" in reason()(KVQuantConfig(LevelCodes(bits=1.6), LEVELS))
    assert "rotated channels" in reason()(KVQuantConfig(LevelCodes(rotation="hadamard"), LEVELS))
    assert "MixedTensor is neither" in reason()(vkq_jax.presets["vidkv-1.5bit"])
    assert reason()(KVQuantConfig(SIGNS, SIGNS, ScoreCalibration())) is None
    mixed = stacked(random_layer(Shape(head_dim=64), vkq_jax.presets["none"])[1], 1)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (mixed.visual[0].key,))[0]
    bank = dataclasses.replace(mixed.visual[0], key=wide)
    reason = mosaic_gpu.unsupported_reason(dataclasses.replace(mixed, visual=(bank,)))
    assert reason == "dense banks in float32, not bfloat16"
    for head_dim in (80, 256):
        other = stacked(random_layer(Shape(head_dim=head_dim), vkq_jax.presets["none"])[1], 1)
        for cache in (other, dataclasses.replace(other, visual=())):  # pictures, only text
            reason = mosaic_gpu.unsupported_reason(cache)
            assert reason == f"dense banks of head_dim {head_dim}, none of (64, 128)"
    query, layer = random_layer(Shape(head_dim=257), signs)
    with pytest.raises(NotImplementedError, match="head_dim 257"):
        mosaic_gpu.attend_cache(query, layer, launch=emulated_launch)


def test_a_soft_cap_together_with_calibration_is_not_covered(monkeypatch):
    query, layer = random_layer(Shape(head_dim=64), CODES["signs, calibrated"])
    reason = "logits soft-cap together with score calibration"
    with pytest.raises(NotImplementedError, match=reason):
        attend(query, layer, logits_soft_cap=50.0)
    only_text = dataclasses.replace(stacked(layer, 1), visual=())  # nothing to calibrate
    assert mosaic_gpu.unsupported_reason(only_text, 50.0) is None
    monkeypatch.setattr(mosaic_gpu, "device_reason", lambda: None)
    assert pallas_kernels.choose_implementation(None, layer) == "mosaic_gpu"
    assert pallas_kernels.choose_implementation(None, layer, 50.0) == "xla"
    assert f"mosaic_gpu: {reason}" in pallas_kernels.explain(layer, logits_soft_cap=50.0)
    with pytest.raises(NotImplementedError, match=f"'mosaic_gpu' does not apply here: {reason}"):
        pallas_kernels.decode_attention(
            query, layer, implementation="mosaic_gpu", logits_soft_cap=50.0
        )
    assert pallas_kernels.decode_attention(query, layer, logits_soft_cap=50.0).shape == query.shape


@pytest.mark.parametrize("heads", [1, 2, 7, 32, 512, 4096])
@pytest.mark.parametrize("queries", [1, 4, 7, 8, 30])
@pytest.mark.parametrize("positions", [1, 576, 2304, 32768])
@pytest.mark.parametrize("head_dim", [128, 256])
def test_a_tuning_fits_any_shape(heads, queries, positions, head_dim):
    packed = Packed(positions, Coding(), Coding())
    dense = () if head_dim == 256 else (Dense("text", 100),)
    tuning = choose_tuning(heads, queries, head_dim, (packed,), dense)
    spec = KernelSpec(heads, 1, queries, head_dim, (packed,), dense, tuning=tuning)
    if head_dim == 256 and tuning.queries > 1:  # registers
        assert tuning.warps <= 8
        assert tuning.queries <= 4
    assert spec.grid * spec.block_teams >= spec.teams
    assert 4 * spec.shared_words <= 227 * 1024  # what a thread block of an H100 can have


@pytest.mark.parametrize(
    ("heads", "queries", "positions", "tuning"),
    [
        (16 * 32, 1, 2304, TuningConfig(4, 2)),
        (128 * 8, 4, 3328, TuningConfig(16, 2, 1, 4)),  # 128 thread blocks: one round
        (133 * 8, 4, 3328, TuningConfig(4, 2, 1, 4)),  # 133 would be two
        (16 * 4, 8, 32768, TuningConfig(8, 8, 2, 8)),
        (16 * 4, 8, 131072, TuningConfig(8, 8, 2, 8)),
    ],
)
def test_tunings_that_were_measured(heads, queries, positions, tuning):
    packed = Packed(positions, Coding(), Coding())
    assert choose_tuning(heads, queries, 128, (packed,), (Dense("text", 64),)) == tuning


def test_explain_says_how_the_work_is_divided():
    query, layer = random_layer(Shape(head_dim=128, num_heads=8, num_queries=2), CODES["signs"])
    text = pallas_kernels.explain(stacked(layer, 3), jax.ShapeDtypeStruct(query.shape, query.dtype))
    assert "one launch over 70 packed, 9 dense (text)" in text
    assert "to a team of 8 queries" in text
    plain = pallas_kernels.explain(layer)
    assert plain.count("\n") == 2


def test_explain_says_what_score_calibration_costs():
    query, layer = random_layer(Shape(head_dim=128, num_heads=8), CODES["levels, calibrated"])
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    each_step = pallas_kernels.explain(stacked(layer, 3), shape)
    assert "score calibration: one more launch before" in each_step
    alone = Shape(head_dim=128, num_heads=2)
    query, alone = random_layer(alone, CODES["levels, calibrated"])
    shape_alone = jax.ShapeDtypeStruct(query.shape, query.dtype)
    in_launch = pallas_kernels.explain(stacked(alone, 3), shape_alone)
    assert "score calibration: in the launch, which keeps all scores" in in_launch
    static = pallas_kernels.explain(stacked(with_score_map(layer, 8), 3), shape)
    assert "score calibration: static, in the query, no launch of its own" in static
    assert "one more launch" not in static


@pytest.mark.parametrize(
    ("head_dim", "rotated_and_stored"),
    [
        (96, ["rotation of queries: by xla", "head_dim 96: stored with zeros, as 128"]),
        (160, ["rotation of queries: by xla", "head_dim 160: stored with zeros, as 256"]),
        (256, []),
    ],
)
def test_explain_says_what_happens_beside_the_launches_of_other_heads(head_dim, rotated_and_stored):
    query, layer = random_layer(Shape(head_dim=head_dim), CODES["signs and levels"])
    shapes = jax.eval_shape(lambda: (stacked(layer, 3), query))  # no arrays are needed
    text = pallas_kernels.explain(*shapes)
    assert [line.removeprefix("mosaic_gpu: ") for line in text.splitlines()[4:]] == [
        *rotated_and_stored,
        "text bank by xla, joined by its log-sum-exp: "
        f"dense banks of head_dim {head_dim}, none of (64, 128)",
    ]
    assert "one launch over 70 packed:" in text.splitlines()[3]
