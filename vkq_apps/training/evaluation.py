"""Exact match per task on held-out pictures, teacher-forced: cheap enough to run while training.

A turn counts as right when every token of its answer is the most likely one given the right tokens
before it; then free-running greedy generation gives the same answer, and the other way round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from vkq_apps.training.catalogue import TASKS
from vkq_apps.training.chunks import ChunkArrays
from vkq_jax.array_types import Array

__all__ = ["evaluate", "exact_match"]

Predict = Callable[[Array, Array], Array]
"""images [n, 336, 336, 3], rows [n, 5, R] -> most likely token [n, R]."""


def evaluate(
    predict: Predict, chunk: ChunkArrays, batch: int, *, roll: int = 0
) -> dict[str, float]:
    """Share of right answers of each task, and of right tokens of all ("tokens").

    Args:
        predict: see `Predict`.
        chunk: held-out examples.
        batch: examples at a time; the chunk is a multiple of it.
        roll: ask about the picture that comes so many places before: the shuffled control.
    """
    if len(chunk.rows) % batch:
        raise ValueError(f"{len(chunk.rows)} examples do not divide into batches of {batch}")
    images = np.roll(chunk.images, roll, axis=0) if roll else chunk.images
    predicted = [
        np.asarray(
            predict(jnp.asarray(images[i : i + batch]), jnp.asarray(chunk.rows[i : i + batch]))
        )
        for i in range(0, len(images), batch)
    ]
    return exact_match(np.concatenate(predicted), chunk.rows)


def exact_match(predicted: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Scores from predictions int [n, R] and rows int16 [n, 5, R]."""
    _, turn, _, target, task = rows.transpose(1, 0, 2)
    wrong = (predicted != target) & (target >= 0)
    right: dict[str, list[bool]] = defaultdict(list)
    for number in range(int(turn.max()) + 1):
        mine = turn == number
        asked = mine.any(-1)
        failed = (wrong & mine).any(-1)
        for row in np.flatnonzero(asked):
            right[TASKS[task[row][mine[row]][0]]].append(not failed[row])
    scores = {name: round(float(np.mean(right[name])), 4) for name in TASKS if right[name]}
    return scores | {"tokens": round(float(1 - wrong.sum() / (target >= 0).sum()), 4)}
