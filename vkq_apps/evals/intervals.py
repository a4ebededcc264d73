"""Intervals of 95 %."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["bootstrap", "paired", "wilson"]

_Z = 1.959963984540054  # of 95 %
_RESAMPLES = 2000


def wilson(right: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share, for `right` of `count`."""
    share = right / count
    middle = share + _Z**2 / (2 * count)
    reach = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    low, high = (middle - reach) / scale, (middle + reach) / scale
    return (0.0 if right == 0 else low), (1.0 if right == count else high)  # exactly


def bootstrap(
    values: Sequence[float],
    clusters: Sequence[str],
    *,
    seed: int,
    weights: Sequence[float] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a (weighted) mean, whole clusters drawn at a time.

    Questions about one picture are not independent of each other; pictures are.

    Args:
        values: one for each sample.
        clusters: the name of each sample's picture.
        seed: the same seed, clusters and order give the same draws.
        weights: of the mean; values are then sums over so many positions.
    """
    names = list(dict.fromkeys(clusters))
    place = {name: number for number, name in enumerate(names)}
    index = np.array([place[name] for name in clusters])
    sums = np.bincount(index, np.asarray(values, float), len(names))
    ones = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    counts = np.bincount(index, ones, len(names))
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(_RESAMPLES // 100):  # few at a time, for memory
        drawn = rng.integers(len(names), size=(100, len(names)))
        means.append(sums[drawn].sum(-1) / np.maximum(counts[drawn].sum(-1), 1e-12))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def paired(
    differences: Sequence[float], clusters: Sequence[str], *, seed: int
) -> tuple[float, float]:
    """Bootstrap interval of a mean of paired differences, each between -100 and 100 points.

    A bootstrap of samples without a difference says that none is possible, however few the samples
    are. Such samples get the exact (Clopper-Pearson) bound of an event that was never seen, to both
    sides.
    """
    if any(differences):
        return bootstrap(differences, clusters, seed=seed)
    reach = 100 * (1 - 0.025 ** (1 / len(set(clusters))))
    return -reach, reach
