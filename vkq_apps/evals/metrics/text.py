"""Metrics of text: exact match, ANLS, character error rate."""

from collections.abc import Sequence

from vkq_apps.evals.metrics.metric import Metric, of_each

__all__ = ["EXACT", "EXACT_IGNORING_CASE", "is_exact", "is_exact_ignoring_case"]


def is_exact(answer: str, answers: Sequence[str]) -> bool:
    """Whether an answer is one of the right ones, white space at the ends and doubled apart."""
    return " ".join(answer.split()) in {" ".join(right.split()) for right in answers}


def is_exact_ignoring_case(answer: str, answers: Sequence[str]) -> bool:
    """The same whatever the case, and with or without a full stop at the end."""
    return is_exact(_plain(answer), [_plain(right) for right in answers])


def _plain(text: str) -> str:
    return text.casefold().strip().removesuffix(".")


EXACT = Metric("exact", of_each(is_exact), is_exact)
EXACT_IGNORING_CASE = Metric("exact", of_each(is_exact_ignoring_case), is_exact_ignoring_case)
