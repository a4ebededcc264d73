"""Rows of training: several independent questions about one picture, side by side.

A prompt is `prefix, image, turn`. A row holds the prefix and the image once and many turns; each
turn sees prefix, image and itself, and its positions start where the image ends. So every turn is
computed exactly as in a prompt of its own.
"""

import random
from collections.abc import Sequence

import numpy as np

from vkq_apps.training.catalogue import TASKS
from vkq_apps.training.encoding import RECIPE, Encoding
from vkq_apps.training.pictures import Turn
from vkq_apps.training.prompts import ANSWER_PREFIX, suffix

__all__ = ["LANES", "pack_row"]

LANES = ("tokens", "turn", "position", "target", "task")
"""Rows of an int16 [5, R] array, R = `Encoding.row_length`: input id; number of the turn, -1 in
padding; position after the image; id to predict, -1 where none; index of the turn's task, -1 in
padding."""


def pack_row(
    turns: Sequence[Turn], rng: random.Random | None = None, encoding: Encoding = RECIPE
) -> np.ndarray:
    """Packs turns, in random order if `rng` is given, into int16 [5, R] (see `LANES`).

    A turn that does not fit any more is left out.
    """
    row = np.full((len(LANES), encoding.row_length), -1, np.int16)
    row[0], row[2] = encoding.pad, 0
    order = list(turns)
    if rng is not None:
        rng.shuffle(order)
    start = 0
    for number, turn in enumerate(order):
        question = encoding.encode(suffix(turn.question))
        ids = [*question, *encoding.encode(ANSWER_PREFIX + turn.answer), encoding.eos]
        stop = start + len(ids) - 1
        if stop > encoding.row_length:
            continue
        row[0, start:stop] = ids[:-1]
        row[1, start:stop] = number
        row[2, start:stop] = range(len(ids) - 1)
        row[3, start + len(question) - 1 : stop] = ids[len(question) :]
        row[4, start:stop] = TASKS.index(turn.task)
        start = stop
    return row
