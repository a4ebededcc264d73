import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax.calibration import ScoreCalibration, calibrate

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


def test_equal_scores_are_guarded_and_finite():
    mapped, guarded = calibrate(jnp.ones((1, 4)), VISIBLE[:1], ScoreCalibration())
    np.testing.assert_array_equal(mapped, jnp.ones((1, 4)))
    assert guarded.tolist() == [True]
