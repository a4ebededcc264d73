"""Batches of random prompts with pictures, as processors give them."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Tokens", "counts_of_rows", "prompt_rows", "spread"]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Ids at odd places of a vocabulary: `marks` of pictures, the others are `words`."""

    vocabulary: int
    marks: tuple[int, ...]
    words: tuple[int, ...]

    @classmethod
    def draw(cls, rng: random.Random, marks: int = 6) -> "Tokens":
        vocabulary = rng.randint(40, 70)
        chosen = rng.sample(range(6, vocabulary), marks)
        return cls(
            vocabulary, tuple(chosen), tuple(sorted(set(range(3, vocabulary)) - set(chosen)))
        )


def counts_of_rows(rng: random.Random) -> tuple[int, ...]:
    """Pictures of each row: none, one, several."""
    return rng.choice(((0, 1, 2), (2, 0), (1,), (0, 0), (3, 0, 1), (1, 1), (0, 2, 0, 1)))


def spread(counts: Sequence[int], items: Sequence[Any]) -> list[list[Any]]:
    """Items, row by row."""
    ends = np.cumsum(counts)
    return [list(items[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def prompt_rows(
    rng: random.Random, tokens: Tokens, visuals: Sequence[Sequence[list[int]]]
) -> list[list[int]]:
    """Rows of text with the tokens of their pictures in between; text may be missing at the ends.

    Text stands between any two pictures.
    """
    rows = []
    for pictures in visuals:
        row = rng.choices(tokens.words, k=rng.randint(0, 4))
        for i, picture in enumerate(pictures):
            row += [*picture, *rng.choices(tokens.words, k=rng.randint(i < len(pictures) - 1, 5))]
        rows.append(row or rng.choices(tokens.words, k=3))
    return rows
