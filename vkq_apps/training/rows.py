"""Rows of training: several independent questions about one picture, side by side.

A prompt is `prefix, image, turn`. A row holds the prefix and the image once and many turns; each
turn sees prefix, image and itself, and its positions start where the image ends. So every turn is
computed exactly as in a prompt of its own.
"""

import random
from collections.abc import Sequence

import numpy as np

from vkq_apps.training.catalogue import TASKS
from vkq_apps.training.pictures import Turn
from vkq_apps.training.prompts import ANSWER_PREFIX, PROMPT_PREFIX, suffix
from vkq_apps.training.tokenizer import BOS, EOS, PAD, encode

__all__ = ["IMAGE_TOKENS", "LANES", "PREFIX", "ROW_LENGTH", "TEXT_START", "pack_row"]

IMAGE_TOKENS = 576
PREFIX = (BOS, *encode(PROMPT_PREFIX))
TEXT_START = len(PREFIX) + IMAGE_TOKENS
"""Position of the first token behind the image."""
ROW_LENGTH = 704 - TEXT_START
"""Text tokens of a row; with the image part they fill 11 blocks of 64."""

LANES = ("tokens", "turn", "position", "target", "task")
"""Rows of an int16 [5, ROW_LENGTH] array: input id; number of the turn, -1 in padding; position
behind the image; id to predict, -1 where none; index of the turn's task, -1 in padding."""


def pack_row(turns: Sequence[Turn], rng: random.Random | None = None) -> np.ndarray:
    """Packs turns, in random order if `rng` is given, into int16 [5, ROW_LENGTH] (see `LANES`).

    A turn that does not fit any more is left out.
    """
    row = np.full((len(LANES), ROW_LENGTH), -1, np.int16)
    row[0], row[2] = PAD, 0
    order = list(turns)
    if rng is not None:
        rng.shuffle(order)
    start = 0
    for number, turn in enumerate(order):
        question = encode(suffix(turn.question))
        ids = [*question, *encode(ANSWER_PREFIX + turn.answer), EOS]
        stop = start + len(ids) - 1
        if stop > ROW_LENGTH:
            continue
        row[0, start:stop] = ids[:-1]
        row[1, start:stop] = number
        row[2, start:stop] = range(len(ids) - 1)
        row[3, start + len(question) - 1 : stop] = ids[len(question) :]
        row[4, start:stop] = TASKS.index(turn.task)
        start = stop
    return row
