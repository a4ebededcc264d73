"""Held-out pictures: seeds that training never draws."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vkq_apps.training.chunks import ChunkArrays, new_chunk, render_row
from vkq_apps.training.pictures import KINDS, Picture, make_picture

__all__ = ["Question", "heldout", "heldout_chunk", "questions", "shuffled"]


@dataclasses.dataclass(frozen=True)
class Question:
    """One question for free-running generation.

    Attributes:
        image: uint8 [336, 336, 3].
        kind, index: of the held-out picture that the question is about.
    """

    image: np.ndarray
    question: str
    answer: str
    task: str
    kind: str
    index: int


def heldout(kind: str, index: int) -> Picture:
    """Held-out picture number `index` of a kind, at full difficulty."""
    return make_picture(kind, _seed(index))


def questions(count: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Question]:
    """All questions about the first `count` held-out pictures of each kind."""
    for kind in kinds:
        for index in range(count):
            picture = heldout(kind, index)
            for turn in picture.turns:
                yield Question(picture.image, turn.question, turn.answer, turn.task, kind, index)


def shuffled(asked: Question, distance: int = 1) -> Question:
    """The control: the same question and answer, with another picture of the same kind.

    A model that answers it well does not look.
    """
    image = heldout(asked.kind, asked.index + distance).image
    return dataclasses.replace(asked, image=image)


def heldout_chunk(count: int) -> ChunkArrays:
    """The first `count` held-out pictures of every kind, kind by kind, as packed rows."""
    chunk = new_chunk(count * len(KINDS))
    for number, kind in enumerate(KINDS):
        for index in range(count):
            render_row(chunk, number * count + index, kind, _seed(index))
    return chunk


def _seed(index: int) -> str:
    return f"heldout/{index}"
