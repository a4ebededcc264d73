"""Answers of full precision and of presets to one batch: written freely, or chosen."""

from typing import Protocol

import jax.numpy as jnp
import numpy as np

import models
from models.generation.teacher_forcing import Answered, Comparison, EvaluatedModel, Prompted
from vkq_apps.evals.batches import Batch, Prepared
from vkq_jax.array_types import Array, Int32
from vkq_jax.cache.updates import take_sequences

__all__ = ["Answers", "Chosen", "Written"]


class Answers(Protocol):
    """Full precision's own answers, and how the answers of presets are found.

    Attributes:
        exact: full precision along its own answers, which every preset is measured on.
    """

    exact: Answered

    def rows(self, exact: Comparison) -> list[int]:
        """The row of each sample that holds full precision's own answer."""
        ...

    def texts(self, prompted: Prompted, comparison: Comparison) -> list[str]:
        """A preset's answer to each sample."""
        ...


class Written:
    """Greedy answers, no longer than the task allows."""

    def __init__(self, evaluated: EvaluatedModel, batch: Batch, prompted: Prompted, *, steps: int):
        """Full precision's own, from its prompts."""
        self._evaluated, self._batch, self._steps = evaluated, batch, steps
        own = self._write(prompted)
        self.exact = evaluated.follow(prompted, own.tokens, own.lengths)
        self._own = self._texts(own)

    def rows(self, exact: Comparison) -> list[int]:
        """One row a sample, in order."""
        return [rows[0] for rows in self._batch.rows_of_samples]

    def texts(self, prompted: Prompted, comparison: Comparison) -> list[str]:
        """Full precision's answer where no token differs along it, else an answer of its own."""
        differs = comparison.first_difference < np.asarray(self.exact.lengths)
        rows = self.rows(comparison)
        anew = [row for row in rows if differs[row]]
        texts = dict(zip(rows, (self._own[row] for row in rows), strict=True))
        if anew:
            # Few rows decode in a fraction of the time; few sizes are compiled once each.
            whole = len(self._batch.rows)
            size = next((size for size in (8, 16) if len(anew) <= size < whole), whole)
            taken = jnp.asarray([*anew, *[anew[0]] * size][:size]) if size < whole else None
            written = self._texts(
                self._write(prompted if taken is None else _rows(prompted, taken))
            )
            places = anew if taken is None else range(len(anew))
            texts |= {row: written[place] for row, place in zip(anew, places, strict=True)}
        return [texts[row] for row in rows]

    def _write(self, prompted: Prompted) -> Answered:
        limit = self._batch.task.max_new_tokens
        return self._evaluated.answer(prompted, limit, steps=self._steps)

    def _texts(self, answered: Answered) -> list[str]:
        texts = models.decode(self._evaluated.model, answered.tokens, answered.lengths)
        return [text.strip() for text in texts]


def _rows(prompted: Prompted, rows: Int32[Array, "n"]) -> Prompted:
    """Some of the prompts."""
    return Prompted(prompted.logits[rows], take_sequences(prompted.cache, rows))


class Chosen:
    """The most likely choices: log-likelihood over the length in bytes, as lm-eval's `acc_norm`."""

    def __init__(self, evaluated: EvaluatedModel, prepared: Prepared, prompted: Prompted):
        """Full precision along all choices of a batch."""
        assert prepared.choices is not None
        self._batch = prepared.batch
        self.exact = evaluated.follow(prompted, *prepared.choices)

    def rows(self, exact: Comparison) -> list[int]:
        """The row of each sample's best choice."""
        best = []
        for rows in self._batch.rows_of_samples:
            scores = [
                exact.log_likelihood[row] / len((self._batch.rows[row][1] or " ").encode())
                for row in rows
            ]
            best.append(rows[int(np.argmax(scores))])
        return best

    def texts(self, prompted: Prompted, comparison: Comparison) -> list[str]:
        """The best choice of each sample."""
        return [self._batch.rows[row][1] or "" for row in self.rows(comparison)]
