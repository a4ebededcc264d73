"""Answers of full precision and of presets to one batch: written freely, or chosen."""

from typing import Protocol

import jax.numpy as jnp
import numpy as np

import models
from models import Model
from vkq_apps.evals import engine
from vkq_apps.evals.batches import Prepared
from vkq_apps.evals.engine import Comparison, Prompted

__all__ = ["Answers", "Chosen", "Written"]


class Answers(Protocol):
    """Full precision's own answers, and how a preset's come about.

    Attributes:
        tokens: [Q, steps], what all presets are measured on. lengths: [Q].
    """

    tokens: jnp.ndarray
    lengths: jnp.ndarray

    def rows(self, exact: Comparison) -> list[int]:
        """The row of each sample that holds full precision's own answer."""
        ...

    def texts(self, prompted: Prompted, comparison: Comparison) -> list[str]:
        """A preset's answer to each sample."""
        ...


class Written:
    """Greedy answers, at most `limit` tokens long."""

    def __init__(self, model: Model, prepared: Prepared, prompted: Prompted, *, steps: int):
        """Full precision's own, from its prompts."""
        self._model, self._steps, self._batch = model, steps, prepared.batch
        self.tokens, self.lengths, self._own = self._write(prompted)

    def rows(self, exact: Comparison) -> list[int]:
        """One row a sample, in order."""
        return [rows[0] for rows in self._batch.rows_of_samples]

    def texts(self, prompted: Prompted, comparison: Comparison) -> list[str]:
        """Full precision's where no token differs along it; written anew for the others."""
        differs = comparison.first_difference < np.asarray(self.lengths)
        texts = self._write(prompted)[2] if differs.any() else self._own
        return [
            texts[row] if differs[row] else self._own[row] for row in self.rows(comparison)
        ]

    def _write(self, prompted: Prompted) -> tuple[jnp.ndarray, jnp.ndarray, list[str]]:
        limit = self._batch.task.max_new_tokens
        tokens, lengths = engine.continue_greedily(
            self._model, prompted, limit, steps=self._steps
        )
        texts = models.decode(self._model, tokens, lengths)
        return tokens, lengths, [text.strip() for text in texts]


class Chosen:
    """The most likely choices: log-likelihood over the length in bytes, as lm-eval's `acc_norm`."""

    def __init__(self, prepared: Prepared):
        """The choices of a prepared batch."""
        assert prepared.forced is not None
        self._batch = prepared.batch
        self.tokens = jnp.asarray(prepared.forced)
        self.lengths = jnp.asarray(prepared.forced_lengths)

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
