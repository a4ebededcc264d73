"""Metrics of text: exact match, ANLS, characters, containment."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from vkq_apps.evals.metrics.metric import Metric, of_each
from vkq_apps.evals.samples import Sample

__all__ = [
    "ANLS",
    "CHARACTERS",
    "CONTAINED",
    "EXACT",
    "EXACT_IGNORING_CASE",
    "OCRBENCH",
    "anls",
    "character_error_rate",
    "contains",
    "is_exact",
    "is_exact_ignoring_case",
]


def is_exact(answer: str, answers: Sequence[str]) -> bool:
    """Whether an answer is one of the right ones, white space at the ends and doubled apart."""
    return " ".join(answer.split()) in {" ".join(right.split()) for right in answers}


def is_exact_ignoring_case(answer: str, answers: Sequence[str]) -> bool:
    """Whether texts are equal but for their case and a full stop at the end."""
    return is_exact(_plain(answer), [_plain(right) for right in answers])


def anls(answer: str, answers: Sequence[str]) -> float:
    """Normalized Levenshtein similarity to the nearest right answer, 0 below a half.

    The metric of DocVQA (ST-VQA, arXiv 1905.13648): whatever the case and doubled white space.
    """
    plain = [" ".join(text.casefold().split()) for text in (answer, *answers)]
    nearest = max(Levenshtein.normalized_similarity(plain[0], right) for right in plain[1:])
    return nearest if nearest > 0.5 else 0.0


def character_error_rate(answer: str, answers: Sequence[str]) -> float:
    """Edits from the nearest right answer over its length in characters: 0 is right."""
    return min(Levenshtein.distance(right, answer) / max(1, len(right)) for right in answers)


def contains(answer: str, answers: Sequence[str]) -> bool:
    """Whether a right answer stands anywhere in this one, in any case of letters.

    An empty right answer, which some data sets have beside others, stands in an empty one alone.
    """
    text = answer.lower().replace("\n", " ")
    rights = [right.lower().replace("\n", " ").strip() for right in answers]
    return any(right in text if right else not text.strip() for right in rights)


def _ocrbench(answers: Sequence[str], samples: Sequence[Sample]) -> list[float]:
    """`contains`; formulas are compared without any space, as OCRBench does."""
    scores = []
    for answer, sample in zip(answers, samples, strict=True):
        rights = sample.answers
        if sample.part == "Handwritten Mathematical Expression Recognition":
            answer, *rights = ("".join(text.split()) for text in (answer, *rights))
        scores.append(float(contains(answer, rights)))
    return scores


def _plain(text: str) -> str:
    return text.casefold().strip().removesuffix(".")


def _mean_error_rate(answers: Sequence[str], samples: Sequence[Sample]) -> float:
    rates = [
        character_error_rate(answer, sample.answers)
        for answer, sample in zip(answers, samples, strict=True)
    ]
    return sum(rates) / len(rates)


EXACT = Metric("exact", of_each(is_exact), is_exact)
EXACT_IGNORING_CASE = Metric("exact", of_each(is_exact_ignoring_case), is_exact_ignoring_case)
ANLS = Metric("anls", of_each(anls), is_exact_ignoring_case)
CONTAINED = Metric("contains", of_each(contains), is_exact_ignoring_case)
OCRBENCH = Metric("contains", _ocrbench, is_exact_ignoring_case)
CHARACTERS = Metric(
    "characters",
    of_each(lambda answer, answers: max(0.0, 1 - character_error_rate(answer, answers))),
    is_exact,
    overall={"cer": _mean_error_rate},
)
