"""The figures of an evaluation, from its log."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vkq_apps.evals.intervals import bootstrap, paired, wilson
from vkq_apps.evals.records import Record, SampleLog
from vkq_apps.evals.samples import Sample
from vkq_apps.evals.settings import CONTROL, NONE, Setting
from vkq_apps.evals.tasks import Task

__all__ = ["ALL", "Judged", "summarize"]

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Judged:
    """A sample's answers by a preset and by full precision.

    Attributes:
        sample: the question.
        record, full: of the preset, and of full precision.
        exact, full_exact: 1 for an exact match, else 0.
        score, full_score: by the task's metric.
    """

    sample: Sample
    record: Record
    full: Record
    exact: float
    full_exact: float
    score: float
    full_score: float


def summarize(
    log: SampleLog,
    plan: Mapping[str, tuple[Task, Sequence[Sample]]],
    settings: Sequence[Setting],
    *,
    seed: int,
    full: str = NONE,
) -> dict[str, Any]:
    """`presets` of the results: see `vkq eval --help` for what each figure is."""
    presets = {}
    for setting in settings:
        judged = {
            name: _judge(log, task, samples, setting.name, full)
            for name, (task, samples) in plan.items()
        }
        everything = [one for some in judged.values() for one in some]
        tasks = {
            name: {
                **_figures(some, seed),
                **_by_metric(plan[name][0], some, seed),
                **_by_part(some, seed),
            }
            for name, some in judged.items()
        }
        tasks[ALL] = _figures(everything, seed)
        row = {**_sizes(everything), **_by_layer(everything), "tasks": tasks}
        presets[setting.name] = _rounded(row)
    return presets


def _judge(
    log: SampleLog, task: Task, samples: Sequence[Sample], preset: str, full: str
) -> list[Judged]:
    own, others = (_records_of(log, task, samples, name) for name in (preset, full))
    scores, full_scores = (
        task.metric.scores([record.answer for record in some], samples) for some in (own, others)
    )
    return [
        Judged(
            sample,
            record,
            other,
            exact=float(task.metric.is_exact(record.answer, sample.answers)),
            full_exact=float(task.metric.is_exact(other.answer, sample.answers)),
            score=score,
            full_score=full_score,
        )
        for sample, record, other, score, full_score in zip(
            samples, own, others, scores, full_scores, strict=True
        )
    ]


def _records_of(log: SampleLog, task: Task, samples: Sequence[Sample], preset: str) -> list[Record]:
    records = [log.get(preset, task.name, sample.key) for sample in samples]
    found = [record for record in records if record is not None]
    assert len(found) == len(samples), "a sample is missing"
    return found


def _figures(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    pictures = [one.sample.picture for one in judged]
    right = sum(one.exact for one in judged)
    lost = [100 * (one.full_exact - one.exact) for one in judged]
    agree = sum(one.record.answer == one.full.answer for one in judged)
    kl = [one.record.kl for one in judged]
    positions = [one.record.positions for one in judged]
    firsts = [one.record.first_difference for one in judged]
    differing = [first for first in firsts if first is not None]
    count = len(judged)
    along = {
        "kl": sum(kl) / sum(positions),
        "kl_interval": bootstrap(kl, pictures, seed=seed, weights=positions),
        "diverging": len(differing) / count,
        "first_diverging_step": sum(differing) / len(differing) if differing else None,
    }
    if judged[0].record.preset == CONTROL.name:  # its answers are its own, not full precision's
        along = dict.fromkeys(along)
    return {
        "samples": count,
        "exact": right / count,
        "exact_interval": wilson(right, count),
        "lost": sum(lost) / count,
        "lost_interval": _lost_interval(judged, lost, seed),
        "agreement": agree / count,
        "agreement_interval": wilson(agree, count),
        **along,
    }


def _lost_interval(
    judged: Sequence[Judged], lost: Sequence[float], seed: int
) -> tuple[float, float]:
    if judged[0].record.preset == judged[0].full.preset:
        return 0.0, 0.0  # full precision beside itself
    return paired(lost, [one.sample.picture for one in judged], seed=seed)


def _by_metric(task: Task, judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    """The task's own metric, where that is not the exact match."""
    metric = task.metric
    answers, samples = [one.record.answer for one in judged], [one.sample for one in judged]
    overall = {name: figure(answers, samples) for name, figure in metric.overall.items()}
    if metric.name == "exact":
        return overall
    pictures = [one.sample.picture for one in judged]
    scores = [one.score for one in judged]
    lost = [100 * (one.full_score - one.score) for one in judged]
    return {
        "metric": metric.name,
        "score": sum(scores) / len(scores),
        "score_interval": bootstrap(scores, pictures, seed=seed),
        "score_lost": sum(lost) / len(lost),
        "score_lost_interval": _lost_interval(judged, lost, seed),
        **overall,
    }


def _by_part(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    parts: dict[str, list[Judged]] = {}
    for one in judged:
        parts.setdefault(one.sample.part, []).append(one)
    if set(parts) == {""}:
        return {}
    return {"parts": {part: _figures(some, seed) for part, some in sorted(parts.items())}}


def _by_layer(judged: Sequence[Judged]) -> dict[str, Any]:
    """Mean error of each layer, where it was asked for."""
    measured = [one.record.layers for one in judged if one.record.layers]
    if not measured:
        return {}
    return {
        "layers": {
            f"{name}_error": np.mean([layers[name] for layers in measured], axis=0).tolist()
            for name in measured[0]
        }
    }


def _rounded(figures: Any) -> Any:
    """Six significant digits are more than any of the figures has."""
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_rounded(value) for value in figures]
    return float(f"{figures:.6g}") if isinstance(figures, float) else figures


def _sizes(judged: Sequence[Judged]) -> dict[str, Any]:
    records = [one.record for one in judged]
    elements = sum(record.elements for record in records)
    key = 8 * sum(record.key_bytes for record in records) / elements
    value = 8 * sum(record.value_bytes for record in records) / elements
    used = sum(record.key_bytes + record.value_bytes for record in records)
    return {
        "bits_per_element": {"key": key, "value": value, "mean": (key + value) / 2},
        "visual_kv_reduction": 1 - used / sum(record.full_bytes for record in records),
    }
