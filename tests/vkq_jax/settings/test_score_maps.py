import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.caches import Shape, random_layer
from vkq_jax import ScoreCalibration
from vkq_jax.attention.post_scaled import attend_cache, score_range
from vkq_jax.attention.soft_cap import soft_cap
from vkq_jax.settings.score_maps import ScoreMap, calibrate, score_map

SCORES = jnp.asarray([[0.0, 5.0, 10.0, 99.0], [1.0, 2.0, 2.5, -99.0]], jnp.float32)
VISIBLE = jnp.asarray([[True, True, True, False]] * 2)


def test_maps_the_range_of_the_visible_scores():
    """[gamma, delta] -> [gamma - tau1, delta - tau2], CalibQuant's definition."""
    mapped, guarded = calibrate(SCORES, VISIBLE, ScoreCalibration(tau1=1.0, tau2=3.0))
    np.testing.assert_allclose(mapped[0, :3], [-1.0, 3.0, 7.0], rtol=1e-6)
    assert guarded.tolist() == [False, True]


def test_guard_leaves_scores_whose_order_would_reverse():
    mapped, guarded = calibrate(SCORES, VISIBLE, ScoreCalibration())
    np.testing.assert_array_equal(mapped[1], SCORES[1])
    assert guarded.tolist() == [False, True]
    order = jnp.argsort(mapped[0, :3])
    assert order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("scores", [jnp.zeros((1, 4)), SCORES[:1]])
def test_without_a_visible_score_nothing_happens(scores):
    mapped, guarded = calibrate(scores, jnp.zeros((1, 4), bool), ScoreCalibration())
    np.testing.assert_array_equal(mapped, scores)
    assert guarded.tolist() == [False]


@pytest.mark.parametrize("settings", [ScoreCalibration(), ScoreCalibration(tau1=2.0, tau2=1.0)])
def test_equal_scores_are_guarded_and_finite(settings):
    mapped, guarded = calibrate(jnp.ones((1, 4)), VISIBLE[:1], settings)
    np.testing.assert_array_equal(mapped, jnp.ones((1, 4)))
    assert guarded.tolist() == [True]


CALIBQUANT = vkq_jax.presets["calibquant-1bit"]


def test_the_range_of_scores_leaves_padding_out_and_covers_all_banks():
    shape = Shape(num_queries=3, visual=((70, (70, 33)), (40, (0, 7))))
    query, layer = random_layer(shape, CALIBQUANT)
    gamma, delta = score_range(query, layer, logits_scale=0.5)
    for b, lengths in enumerate(((70, 0), (33, 7))):
        keys = [
            bank.key.dequantize()[b, :, :length]
            for bank, length in zip(layer.visual, lengths, strict=True)
        ]
        for n in range(4):  # query heads, two to a KV head
            key = jnp.concatenate([x[n // 2] for x in keys])
            scores = 0.5 * jnp.matmul(query[b, :, n], key.T, precision="highest")
            np.testing.assert_allclose(gamma[b, :, n], scores.min(-1), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(delta[b, :, n], scores.max(-1), rtol=1e-4, atol=1e-4)


def test_the_range_of_capped_scores_is_the_capped_range():
    query, layer = random_layer(Shape(num_queries=2, visual=((70, (70, 33)),)), CALIBQUANT)
    plain = score_range(query, layer, logits_scale=0.5)
    capped = score_range(query, layer, logits_scale=0.5, logits_soft_cap=0.7)
    assert jnp.abs(plain[1]).max() > 1
    for got, uncapped in zip(capped, plain, strict=True):
        np.testing.assert_allclose(got, soft_cap(uncapped, 0.7), rtol=1e-5)


@pytest.mark.parametrize("visual", [(), ((8, (0, 8)),)])
def test_without_visual_tokens_the_range_is_empty(visual):
    gamma, delta = score_range(*random_layer(Shape(visual=visual), CALIBQUANT))
    assert np.isposinf(gamma[0]).all()
    assert np.isneginf(delta[0]).all()
    assert score_map(gamma[0], delta[0], ScoreCalibration())[0].slope.tolist() == [[1.0] * 4]


def test_a_querys_own_static_map_is_the_calibration_of_its_step():
    shape = Shape(batch=1, text=(5,), visual=((70, (33,)), (40, (40,))))
    query, layer = random_layer(shape, CALIBQUANT)
    gamma, delta = score_range(query, layer)
    own, _ = score_map(gamma[0, 0], delta[0, 0], CALIBQUANT.calibration)
    assert (own.slope < 1).any()
    got = attend_cache(query, dataclasses.replace(layer, score_map=own))
    expected = attend_cache(query, layer)
    np.testing.assert_array_equal(got.output, expected.output)
    np.testing.assert_array_equal(got.logsumexp, expected.logsumexp)


def test_a_map_is_refused_with_other_codes_but_not_with_another_calibration():
    row = jnp.ones(4)
    other = dataclasses.replace(CALIBQUANT, value=vkq_jax.presets["signs-1bit"].value)
    for quant in (None, CALIBQUANT, dataclasses.replace(CALIBQUANT, calibration=None)):
        ScoreMap(row, row, quant).check_codes(CALIBQUANT)
    with pytest.raises(ValueError, match=r"expected value=SignCodes\(.*got value=LevelCodes\("):
        ScoreMap(row, row, other).check_codes(CALIBQUANT)


def test_a_static_map_acts_on_visual_scores_only_and_guards_nothing():
    """With keys that are not coded: the map is that of the visual keys' own scores."""
    query, layer = random_layer(Shape(num_queries=2), vkq_jax.presets["none"])
    layer = dataclasses.replace(
        layer, quant=dataclasses.replace(layer.quant, calibration=ScoreCalibration(tau2=1e9))
    )
    assert attend_cache(query, layer).calibration_skipped.all()
    (bank,) = layer.visual
    slope = jnp.asarray([0.25, 0.5, 0.75, 2.0], jnp.float32)
    mapped = dataclasses.replace(layer, score_map=ScoreMap(slope, jnp.log(slope)))
    got = attend_cache(query, mapped)
    assert not got.calibration_skipped.any()
    scale = query.shape[-1] ** -0.5
    for b, (visible, seen) in enumerate(((70, 5), (33, 9))):
        for n in range(4):
            keys = bank.key.values[b, n // 2, :visible], layer.text.key[b, n // 2]
            visual, text = (
                scale * jnp.matmul(query[b, :, n], key.T, precision="highest") for key in keys
            )
            mask = jnp.arange(9)[None] < seen - 1 + jnp.arange(2)[:, None]  # causal
            text = jnp.where(mask, text, -jnp.inf)
            logits = jnp.concatenate([slope[n] * visual + jnp.log(slope[n]), text], -1)
            np.testing.assert_allclose(
                got.logsumexp[b, :, n], jax.nn.logsumexp(logits, -1), rtol=1e-5
            )
