"""Yes or no: MME's accuracy and accuracy+, POPE's precision, recall and F1."""

import re
from collections.abc import Sequence

from vkq_apps.evals.metrics.metric import Metric, of_each
from vkq_apps.evals.samples import Sample

__all__ = ["MME", "POPE", "is_same_verdict", "verdict"]


def verdict(answer: str) -> str:
    """ "yes" or "no", whichever word comes first; "" for neither."""
    found = re.search(r"\b(yes|no|not)\b", answer.lower())
    return "" if found is None else {"not": "no"}.get(found[0], found[0])


def is_same_verdict(answer: str, answers: Sequence[str]) -> bool:
    """Whether an answer says yes or no as the right ones do."""
    return verdict(answer) in {verdict(right) for right in answers}


def _accuracy_plus(answers: Sequence[str], samples: Sequence[Sample]) -> float:
    """Share of pictures about which every question is answered right."""
    right: dict[str, bool] = {}
    for answer, sample in zip(answers, samples, strict=True):
        all_right = is_same_verdict(answer, sample.answers)
        right[sample.picture] = right.get(sample.picture, True) and all_right
    return sum(right.values()) / len(right)


def _counts(answers: Sequence[str], samples: Sequence[Sample]) -> tuple[int, int, int]:
    """Right yeses, all yeses said, all yeses that would be right."""
    said = [verdict(answer) == "yes" for answer in answers]
    true = [verdict(sample.answers[0]) == "yes" for sample in samples]
    both = sum(a and b for a, b in zip(said, true, strict=True))
    return both, sum(said), sum(true)


def _precision(answers: Sequence[str], samples: Sequence[Sample]) -> float:
    both, said, _ = _counts(answers, samples)
    return both / max(1, said)


def _recall(answers: Sequence[str], samples: Sequence[Sample]) -> float:
    both, _, true = _counts(answers, samples)
    return both / max(1, true)


def _f1(answers: Sequence[str], samples: Sequence[Sample]) -> float:
    both, said, true = _counts(answers, samples)
    return 2 * both / max(1, said + true)


MME = Metric(
    "exact",
    of_each(is_same_verdict),
    is_same_verdict,
    overall={"accuracy_plus": _accuracy_plus},
)
POPE = Metric(
    "exact",
    of_each(is_same_verdict),
    is_same_verdict,
    overall={"precision": _precision, "recall": _recall, "f1": _f1},
)
