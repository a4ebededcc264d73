"""Metrics: how answers are scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from vkq_apps.evals.samples import Sample

__all__ = ["Metric", "of_each"]

type Scores = Callable[[Sequence[str], Sequence[Sample]], list[float]]
"""Answers and samples of a whole task -> one score each."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """How the answers of a task are scored.

    Attributes:
        name: as results say it.
        scores: one score for each answer, 1 for a right one; a task's score is their mean.
        is_exact: one answer and the samples's right ones -> whether it is right word for word.
        overall: further figures of all answers together, by name.
    """

    name: str
    scores: Scores
    is_exact: Callable[[str, Sequence[str]], bool]
    overall: Mapping[str, Callable[[Sequence[str], Sequence[Sample]], float]] = dataclasses.field(
        default_factory=dict
    )


def of_each(score: Callable[[str, Sequence[str]], float]) -> Scores:
    """Scores that look at one answer at a time."""
    return lambda answers, samples: [
        float(score(answer, sample.answers))
        for answer, sample in zip(answers, samples, strict=True)
    ]
