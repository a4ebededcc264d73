"""Data formats, and how a task comes out of their records."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from vkq_apps.evals.datasets.entries import Entry
from vkq_apps.evals.datasets.files import Pictures
from vkq_apps.evals.metrics.metric import Metric
from vkq_apps.evals.samples import Sample
from vkq_apps.evals.tasks import Task
from vkq_jax.messages import show

__all__ = ["SHORT_ANSWER", "Format", "picture_sample"]

SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
"""LLaVA-1.5's words (arXiv 2310.03744)."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A published data set's format.

    Attributes:
        name: as `--data` takes it; also the task's name.
        description: which files are looked for.
        read: all samples of a folder, in the order of its files. Raises ValueError for a bad
            record, with its file and line.
        metric: the published one.
        prompt: what the model is asked.
        max_new_tokens: most tokens of an answer.
    """

    name: str
    description: str
    read: Callable[[Path], Iterable[Sample]]
    metric: Metric
    prompt: str = SHORT_ANSWER
    max_new_tokens: int = 16

    def task(self, path: Path, *, name: str | None = None, metric: Metric | None = None) -> Task:
        """The task of a folder or file; reads all of its records.

        Raises:
            ValueError: there is none, one is bad, or two have one key.
        """
        samples, keys = list(self.read(path)), set[str]()
        for sample in samples:
            if sample.key in keys:
                place = path if sample.place is None else sample.place()
                raise ValueError(f"{place}: expected an id of its own, got {show(sample.key)}")
            keys.add(sample.key)
        if not samples:
            raise ValueError(f"{path}: expected at least one {self.name} record, got none")
        return Task(
            name=name or self.name,
            choose=partial(_choose, samples),
            metric=metric or self.metric,
            max_new_tokens=self.max_new_tokens,
            prompt=self.prompt,
            available=len(samples),
            has_clips=any(sample.clips for sample in samples),
        )


def _choose(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """A random subset of the seed, in the order of the data."""
    places = random.Random(f"samples/{seed}").sample(range(len(samples)), min(count, len(samples)))
    return [samples[place] for place in sorted(places)]


def picture_sample(
    entry: Entry,
    pictures: Pictures,
    names: Sequence[str],
    *,
    key: str,
    question: str,
    answers: tuple[str, ...],
    part: str = "",
    choices: tuple[str, ...] = (),
) -> Sample:
    """A sample about one picture file, given by the names that it may have.

    Raises:
        ValueError: there is no such file, or the question is empty.
    """
    path = pictures.find(*names)
    if path is None:
        raise entry.error(f"a picture file {names[0]}", "none of this name, or several")
    return Sample(
        key=key,
        picture=str(path),
        load=partial(_paths, path),
        question=question,
        answers=answers,
        part=part,
        choices=choices,
        place=entry.place,
    )


def _paths(*paths: Path) -> Sequence[Path]:
    return paths
