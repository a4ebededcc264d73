"""Intervals, against known values and against simulation."""

import numpy as np
import pytest

from vkq_apps.evals.intervals import bootstrap, paired, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_that_of_newcombes_table(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_is_the_same_for_a_seed_and_covers_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 1.0, 400)
    clusters = [str(n) for n in range(400)]
    low, high = bootstrap(values, clusters, seed=1)
    assert (low, high) == bootstrap(values, clusters, seed=1)
    assert (low, high) != bootstrap(values, clusters, seed=2)
    # Nearly the interval that the normal distribution gives.
    reach = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.02)


def test_bootstrap_draws_whole_clusters():
    # All questions about a picture alike: there is no more to know than from one of each.
    each = np.random.default_rng(0).normal(size=50)
    once = bootstrap(each, [str(n) for n in range(50)], seed=0)
    many = bootstrap(np.repeat(each, 8), [str(n // 8) for n in range(400)], seed=0)
    assert many == pytest.approx(once)


def test_bootstrap_of_a_ratio_weighs_by_positions():
    sums, weights = [1.0, 30.0], [1.0, 10.0]
    low, high = bootstrap(sums, ["a", "b"], seed=0, weights=weights)
    assert (low, high) == (1.0, 3.0)


def test_paired_differences_that_were_never_seen_are_bounded_by_the_number_of_pictures():
    low, high = paired([0.0] * 12, [str(n // 2) for n in range(12)], seed=0)  # six pictures
    assert high == -low
    assert 1 - (1 - high / 100) ** 6 == pytest.approx(0.975)  # seen in 97.5 %
    assert paired([0.0] * 2000, [str(n) for n in range(2000)], seed=0)[1] < 0.2
    some = [0.0, 100.0, 0.0, -100.0, 0.0]
    assert paired(some, list("abcde"), seed=3) == bootstrap(some, list("abcde"), seed=3)
