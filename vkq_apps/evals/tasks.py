"""Tasks: one dataclass each, from the recipe's own pictures or from people's data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from vkq_apps.evals.metrics.metric import Metric
from vkq_apps.evals.samples import Sample
from vkq_apps.terminal.lists import entries_of

__all__ = ["Task", "choose_tasks", "spread"]


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of question, where its samples come from and how answers are scored.

    Attributes:
        name: as `--tasks` takes it and the results say it.
        choose: `(count, seed)` -> at most `count` samples, the same for the same arguments.
        metric: how answers are scored.
        max_new_tokens: most tokens of an answer.
        prompt: what the model is asked, with `{question}` in it.
        available: number of samples there are; None: as many as are asked for.
        has_clips: whether some samples show clips, which not all models take.
    """

    name: str
    choose: Callable[[int, int], list[Sample]]
    metric: Metric
    max_new_tokens: int = 40
    prompt: str = "{question}"
    available: int | None = None
    has_clips: bool = False

    def ask(self, sample: Sample) -> str:
        """The whole question, without image tokens or chat template."""
        return self.prompt.format(question=sample.question)


def choose_tasks(names: str, known: Mapping[str, Task]) -> list[Task]:
    """The tasks that `--tasks` names, comma-separated, or all of them.

    Raises:
        ValueError: an unknown name, or no name at all.
    """
    if names.strip() == "all":
        return list(known.values())
    asked = entries_of(names)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        what = ", ".join(map(repr, unknown)) or repr(names)
        raise ValueError(f"--tasks: expected all or some of {', '.join(known)}, got {what}")
    return [known[name] for name in asked]


def spread(samples: int, tasks: Sequence[Task]) -> dict[str, int]:
    """How many of so many samples each task gets: even shares, the first tasks one more.

    A task that has fewer gives what it has, and the others share the rest.

    Raises:
        ValueError: fewer samples than tasks.
    """
    if samples < len(tasks):
        raise ValueError(
            f"--samples: expected at least one for each of {len(tasks)} tasks, got {samples}"
        )
    shares = dict.fromkeys((task.name for task in tasks), 0)
    open_tasks, left = list(tasks), samples
    while open_tasks and left:
        each, more = divmod(left, len(open_tasks))
        for place, task in enumerate(open_tasks):
            wanted = shares[task.name] + each + (place < more)
            shares[task.name] = wanted if task.available is None else min(wanted, task.available)
        left = samples - sum(shares.values())
        open_tasks = [
            task
            for task in open_tasks
            if task.available is None or shares[task.name] < task.available
        ]
    return shares
