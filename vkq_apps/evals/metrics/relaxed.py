"""Relaxed accuracy of ChartQA (arXiv 2203.10244): numbers within 5 %, else word for word."""

import math
from collections.abc import Sequence

from vkq_apps.evals.metrics.metric import Metric, of_each
from vkq_apps.evals.metrics.text import is_exact_ignoring_case

__all__ = ["RELAXED", "is_nearly"]

_TOLERANCE = 0.05


def is_nearly(answer: str, answers: Sequence[str]) -> bool:
    """Whether an answer is within 5 % of a right number, or the same text in any case."""
    return any(_matches(answer.strip(), right.strip()) for right in answers)


def _matches(answer: str, right: str) -> bool:
    given, wanted = _number(answer), _number(right)
    if given is not None and wanted:
        return abs(given - wanted) <= _TOLERANCE * abs(wanted)
    return answer.lower() == right.lower()


def _number(text: str) -> float | None:
    """The number that a text is; None: it is none, or "nan" or "infinity", which are words."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return number / 100 if text.endswith("%") else number


RELAXED = Metric("relaxed_accuracy", of_each(is_nearly), is_exact_ignoring_case)
