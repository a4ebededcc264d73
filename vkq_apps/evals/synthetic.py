"""Tasks from the recipe's own pictures: one for each kind, any number of samples of any seed."""

import itertools
import random
from functools import partial
from pathlib import Path

from models import Model
from models.loading import TINY
from vkq_apps.evals.metrics.text import EXACT
from vkq_apps.evals.samples import Sample
from vkq_apps.evals.tasks import Task
from vkq_apps.recipe import check_recipe

__all__ = ["QUESTIONS_PER_PICTURE", "is_recipe_checkpoint", "is_recipe_folder", "synthetic_tasks"]

QUESTIONS_PER_PICTURE = 2
"""Most questions about one picture: many pictures say more than many questions."""

_LONGEST = 80
"""Most tokens of an answer: room for the longest one, four lines of text."""


def synthetic_tasks() -> dict[str, Task]:
    """One task for each kind of picture, by name.

    Raises:
        ValueError: the recipe is not part of this installation.
    """
    check_recipe("--data FORMAT=PATH, with questions of your own")
    from vkq_apps.training.pictures import KINDS  # not in the wheel

    return {kind: Task(kind, partial(_choose, kind), EXACT, _LONGEST) for kind in KINDS}


def is_recipe_checkpoint(model: Model) -> bool:
    """Whether a checkpoint was trained on these pictures."""
    return is_recipe_folder(Path(model.source or ""))


def is_recipe_folder(folder: Path) -> bool:
    """Whether a folder's checkpoint was: its chat template is the recipe's."""
    own, its = (path / "chat_template.jinja" for path in (TINY, folder))
    return its.is_file() and its.read_bytes().strip() == own.read_bytes().strip()


def _choose(kind: str, count: int, seed: int) -> list[Sample]:
    from vkq_apps.training.heldout import heldout

    samples: list[Sample] = []
    for index in itertools.count():
        picture = f"{kind}/{seed}/{index}"
        turns = list(enumerate(heldout(kind, index, seed=seed).turns))
        random.Random(f"questions/{picture}").shuffle(turns)
        for place, turn in turns[:QUESTIONS_PER_PICTURE]:
            if len(samples) == count:
                return samples
            samples.append(
                Sample(
                    key=f"{index}/{place}",
                    picture=picture,
                    load=partial(_draw, kind, index, seed),
                    question=turn.question,
                    answers=(turn.answer,),
                    part=turn.task,
                )
            )
    raise AssertionError("there is no last picture")


def _draw(kind: str, index: int, seed: int):
    from vkq_apps.training.heldout import heldout

    return [heldout(kind, index, seed=seed).image]
