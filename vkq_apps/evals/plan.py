"""The questions of an evaluation: tasks, their samples, and the order they run in."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from models import Model
from vkq_apps.evals.batches import Batch, in_batches
from vkq_apps.evals.datasets import FORMATS
from vkq_apps.evals.samples import Sample, exchange_pictures
from vkq_apps.evals.synthetic import is_recipe_checkpoint, synthetic_tasks
from vkq_apps.evals.tasks import Task, choose_tasks, spread
from vkq_apps.recipe import has_recipe

__all__ = ["Plan", "known_tasks", "make_plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tasks with their samples, by name."""

    tasks: Mapping[str, tuple[Task, Sequence[Sample]]]

    def batches(self, size: int) -> list[Batch]:
        """Batches of `size` rows, task by task."""
        return [
            batch for task, some in self.tasks.values() for batch in in_batches(task, some, size)
        ]

    def digest(self) -> str:
        """A digest of all questions and their right answers."""
        digest = hashlib.sha256()
        for name, (task, some) in self.tasks.items():
            for sample in some:
                asked = [name, sample.key, task.ask(sample), *sample.answers, *sample.choices]
                if sample.clips:
                    asked.append(str([clip.fps for clip in sample.clips] + [sample.num_frames]))
                digest.update(json.dumps(asked).encode())
        return digest.hexdigest()[:16]

    def exchanged(self) -> "Plan":
        """The control: every question about another picture of its task."""
        return Plan(
            {name: (task, exchange_pictures(some)) for name, (task, some) in self.tasks.items()}
        )


def known_tasks(model: Model, data: Mapping[str, Task], *, synthetic: bool) -> dict[str, Task]:
    """The tasks that a model can be asked: the data's, and the recipe's pictures if it knows them.

    Args:
        model: from `models.load`.
        data: from `read_data`.
        synthetic: ask any model about the recipe's pictures.

    Raises:
        ValueError: there is no data, and the model was not trained on the recipe's pictures, or
            the recipe is not part of this installation; or a data task is named like one of the
            recipe's.
    """
    if not synthetic and not is_recipe_checkpoint(model):
        if not data:
            raise ValueError(
                f"{model.source} was not trained on the recipe's pictures, so their questions say "
                f"nothing about it: expected --data FORMAT=PATH with one of {', '.join(FORMATS)} "
                "(or --synthetic to ask them nevertheless)"
            )
        return dict(data)
    if data and not synthetic and not has_recipe():
        return dict(data)
    own = synthetic_tasks()
    for name in data:
        if name in own:
            raise ValueError(f"--data: {name!r} is the name of a task of the recipe's pictures")
    return {**own, **data}


def make_plan(
    names: str | None,
    known: Mapping[str, Task],
    data: Mapping[str, Task],
    *,
    samples: int,
    seed: int,
) -> Plan:
    """The samples of the tasks asked for: those of `--tasks`, else the data's, else all."""
    asked = names if names is not None else ",".join(data) or "all"
    chosen = choose_tasks(asked, known)
    shares = spread(samples, chosen)
    return Plan({task.name: (task, task.choose(shares[task.name], seed)) for task in chosen})
