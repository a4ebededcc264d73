"""Which implementation a call takes, how its work is cut, and what `explain` says of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from pallas_kernels.attention import support
from pallas_kernels.attention.codings import Coding, Dense, Packed
from pallas_kernels.attention.kernel_spec import KernelSpec, TuningConfig
from pallas_kernels.attention.regions import Regions
from pallas_kernels.attention.tuning_configs import choose_tuning, tunings_at_once
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


def shapes_of(shape, codes):
    """A query and a layer without numbers: reasons ask for none."""
    return jax.eval_shape(lambda: random_layer(shape, codes))


def stacked_shapes(layer, num_layers):
    return jax.eval_shape(lambda x: stacked(x, num_layers), layer)


def without_pictures(cache):
    return dataclasses.replace(cache, visual=())


def with_wide_keys(cache):
    """Its first bank's keys in float32."""
    bank, *others = cache.visual
    key = jax.tree.map(lambda x: x.astype(jnp.float32), bank.key)
    return dataclasses.replace(cache, visual=(dataclasses.replace(bank, key=key), *others))


def test_the_choice_is_visible():
    layer = shapes_of(Shape(head_dim=64), CODES["signs"])[1]
    if jax.default_backend() == "cpu":
        assert pallas_kernels.choose_implementation(None, layer) == "xla"
        assert "needs an NVIDIA GPU" in pallas_kernels.explain(layer)
        with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
            pallas_kernels.choose_implementation("mosaic_gpu", layer)


def test_what_the_kernel_does_not_cover_is_said():
    def reason(**changes):
        shape = Shape(**{"head_dim": 64, "visual": ((300, (300, 3)),)} | changes)
        return lambda quant: support.unsupported_reason(shapes_of(shape, quant)[1])

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
    layer = shapes_of(Shape(head_dim=64), signs)[1]
    mixed = stacked_shapes(shapes_of(Shape(head_dim=64), vkq_jax.presets["none"])[1], 1)
    wide = jax.eval_shape(with_wide_keys, mixed)
    reason = support.unsupported_reason(wide)
    assert reason == "dense banks in float32, not bfloat16"
    for head_dim in (80, 256):
        other = stacked_shapes(shapes_of(Shape(head_dim=head_dim), vkq_jax.presets["none"])[1], 1)
        for cache in (other, jax.eval_shape(without_pictures, other)):
            reason = support.unsupported_reason(cache)
            assert reason == f"dense banks of head_dim {head_dim}, none of (64, 128)"
    coded = jax.eval_shape(
        lambda x: without_pictures(dataclasses.replace(x, text=x.text.in_8_bits())), layer
    )
    reason = "text in 8 bits with scales in float32, not bfloat16"
    assert support.unsupported_reason(coded) == reason
    query, layer = shapes_of(Shape(head_dim=257), signs)
    with pytest.raises(NotImplementedError, match="head_dim 257"):
        jax.eval_shape(attend, query, layer)


def test_a_soft_cap_together_with_calibration_is_not_covered(monkeypatch):
    query, layer = shapes_of(Shape(head_dim=64), CODES["signs, calibrated"])
    reason = "logits soft-cap together with score calibration"
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(attend, logits_soft_cap=50.0), query, layer)
    only_text = jax.eval_shape(without_pictures, stacked_shapes(layer, 1))  # nothing to calibrate
    assert support.unsupported_reason(only_text, 50.0) is None
    monkeypatch.setattr(support, "device_reason", lambda: None)
    capped = functools.partial(pallas_kernels.decode_attention, logits_soft_cap=50.0)
    assert pallas_kernels.choose_implementation(None, layer) == "mosaic_gpu"
    assert pallas_kernels.choose_implementation(None, layer, 50.0) == "xla"
    assert f"mosaic_gpu: {reason}" in pallas_kernels.explain(layer, logits_soft_cap=50.0)
    with pytest.raises(NotImplementedError, match=f"'mosaic_gpu' does not apply here: {reason}"):
        jax.eval_shape(functools.partial(capped, implementation="mosaic_gpu"), query, layer)
    assert jax.eval_shape(capped, query, layer).shape == query.shape


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
    assert 4 * Regions.of((spec,)).words <= 227 * 1024  # what a thread block of an H100 can have


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


def test_short_banks_of_classes_fill_the_device_once_by_teams_of_four():
    def classes(codebook):
        codings = (Coding(8, bits, rotated=True, codebook=codebook) for bits in (2, 1, 0))
        slots = (832, 1631, 865)
        return [
            Packed(count, coding, coding, number, of_classes=3)
            for number, (count, coding) in enumerate(zip(slots, codings, strict=True))
        ]

    assert choose_tuning(64 * 4, 4, 128, classes(False), ()) == TuningConfig(8, 4, 1, 4)
    assert choose_tuning(64 * 2, 7, 128, classes(False), ()) == TuningConfig(8, 4, 1, 4)
    assert choose_tuning(64 * 4, 4, 128, classes(True), ()).warps == 16
    assert choose_tuning(75 * 4, 4, 128, classes(False), ()).warps == 16  # two rounds


def test_long_banks_with_a_codebook_take_eight_warps():
    def classes(codebook):
        codings = [Coding(8, bits, rotated=True, codebook=codebook) for bits in (2, 0)]
        return [Packed(8192, x, x, number, of_classes=2) for number, x in enumerate(codings)]

    assert choose_tuning(16 * 8, 4, 128, classes(True), ()) == TuningConfig(8, 8, 1, 4)
    assert choose_tuning(16 * 8, 4, 128, classes(False), ()) == TuningConfig(16, 16, 1, 4)
    assert choose_tuning(32, 1, 128, classes(True), ()) == TuningConfig(8, 8, 2, 1)
    assert choose_tuning(32, 1, 128, classes(False), ()) == TuningConfig(16, 16, 2, 1)


def test_one_query_with_a_codebook_fills_the_device_once_in_blocks_of_eight_warps():
    coding = Coding(8, rotated=True, codebook=True)
    learned = dataclasses.replace(coding, centred=False)

    def tuning(heads, coding):
        return choose_tuning(heads, 1, 128, (Packed(2304, coding, coding),), ())

    assert tuning(16 * 32, coding) == TuningConfig(8, 2)
    assert tuning(17 * 32, coding) == TuningConfig(4, 2)  # two rounds
    assert tuning(16 * 32, learned) == TuningConfig(4, 2)


def test_parts_in_one_loop_fill_a_multiprocessor():
    long = [Packed(2048, Coding(8), Coding(8), 0, of_classes=1)]
    assert tunings_at_once(128, 4, long) == [TuningConfig(8, 8, 1, 4)]
    assert tunings_at_once(64, 7, long) == [TuningConfig(8, 8, 1, 4)]
    assert tunings_at_once(1024, 4, long) == [TuningConfig(4, 4, 1, 4), TuningConfig(8, 8, 1, 4)]
    assert tunings_at_once(8, 3, [*long, *long]) == [TuningConfig(8, 8, 2, 3)]


def test_explain_says_how_the_work_is_divided():
    query, layer = shapes_of(Shape(head_dim=128, num_heads=8, num_queries=2), CODES["signs"])
    text = pallas_kernels.explain(stacked_shapes(layer, 3), query)
    assert "one launch over 70 packed, 9 dense (text)" in text
    assert "to a team of 8 queries" in text
    plain = pallas_kernels.explain(layer)
    assert plain.count("\n") == 2


def test_explain_says_what_score_calibration_costs():
    query, layer = shapes_of(Shape(head_dim=128, num_heads=8), CODES["levels, calibrated"])
    each_step = pallas_kernels.explain(stacked_shapes(layer, 3), query)
    assert "score calibration: one more launch before" in each_step
    alone = Shape(head_dim=128, num_heads=2)
    of_one, alone = shapes_of(alone, CODES["levels, calibrated"])
    in_launch = pallas_kernels.explain(stacked_shapes(alone, 3), of_one)
    assert "score calibration: in the launch, which keeps all scores" in in_launch
    mapped = jax.eval_shape(lambda x: stacked(with_score_map(x, 8), 3), layer)
    static = pallas_kernels.explain(mapped, query)
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
    query, layer = shapes_of(Shape(head_dim=head_dim), CODES["signs and levels"])
    text = pallas_kernels.explain(stacked_shapes(layer, 3), query)
    assert [line.removeprefix("mosaic_gpu: ") for line in text.splitlines()[4:]] == [
        *rotated_and_stored,
        "text bank by xla, joined by its log-sum-exp: "
        f"dense banks of head_dim {head_dim}, none of (64, 128)",
    ]
    assert "one launch over 70 packed:" in text.splitlines()[3]
