"""How answers are scored."""

from types import MappingProxyType

from vkq_apps.evals.metrics.caption import CIDER
from vkq_apps.evals.metrics.metric import Metric
from vkq_apps.evals.metrics.relaxed import RELAXED
from vkq_apps.evals.metrics.text import ANLS, CHARACTERS, CONTAINED, EXACT, EXACT_IGNORING_CASE
from vkq_apps.evals.metrics.vqa import VQA

__all__ = ["METRICS"]

METRICS = MappingProxyType[str, Metric](
    {
        "exact": EXACT_IGNORING_CASE,
        "exact-case": EXACT,
        "anls": ANLS,
        "characters": CHARACTERS,
        "contains": CONTAINED,
        "relaxed": RELAXED,
        "vqa": VQA,
        "cider": CIDER,
    }
)
"""Metrics that a JSONL of one's own may ask for, by name."""
