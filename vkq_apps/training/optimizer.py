"""The optimizer and everything that changes as training goes on.

Muon orthogonalises the momentum of each hidden matrix (query, key, value, gate, ... are matrices
of their own here); AdamW moves tables, heads and vectors. Both are optax's. Muon's update is scaled
(arXiv 2502.16982) so that both want the same learning rate.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vkq_jax.array_types import Array, Float

__all__ = ["AnySchedule", "FittedSchedule", "Schedule", "make_optimizer", "param_group"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Settings as functions of the step, out of `steps` in all pieces of a training together.

    Attributes:
        peak: learning rate after `warmup` steps; it falls as a cosine to `final` of that.
        easy: share of the steps over which pictures grow from easy to full difficulty.
        patch_weight: weight of the auxiliary loss for the first 60 %, then a fifth of it.
    """

    steps: int
    peak: float = 3e-3
    warmup: int = 150
    final: float = 0.02
    easy: float = 0.1
    patch_weight: float = 0.5

    def learning_rate(self, step: Any) -> Float[Array, ""]:
        """Learning rate of a step, counted from 0."""
        cosine = optax.cosine_decay_schedule(self.peak, self.steps, alpha=self.final)
        warmup = optax.linear_schedule(0.0, 1.0, self.warmup)
        return jnp.asarray(warmup(step + 1) * cosine(step))

    def auxiliary_weight(self, step: Any) -> Float[Array, ""]:
        """Weight of the auxiliary loss at a step."""
        return self.patch_weight * jnp.where(step < 0.6 * self.steps, 1.0, 0.2)

    def difficulty(self, step: int) -> float:
        """Difficulty of pictures drawn at a step."""
        if self.easy <= 0:
            return 1.0
        return min(1.0, 0.2 + 0.8 * step / (self.easy * self.steps))


class FittedSchedule:
    """A schedule of as many steps as fit into a time, fitted as they are measured.

    Attributes:
        fitted: the schedule as it stands.
    """

    def __init__(self, schedule: Schedule, ends: float):
        """`schedule`: until steps are measured. `ends`: time of the last step, in seconds."""
        self.fitted, self._ends = schedule, ends
        self._first: tuple[int, float] | None = None

    @property
    def steps(self) -> int:
        """Steps of the schedule as it stands."""
        return self.fitted.steps

    def measure(self, step: int, now: float) -> None:
        """Takes note that so many steps were done at a time; the first call begins."""
        if self._first is None:
            self._first = step, now
        elif now < self._ends:
            first, began = self._first
            left = int((step - first) / (now - began) * (self._ends - now))
            self.fitted = dataclasses.replace(self.fitted, steps=step + left)

    def learning_rate(self, step: Any) -> Float[Array, ""]:
        """See `Schedule.learning_rate`."""
        return self.fitted.learning_rate(step)

    def difficulty(self, step: int) -> float:
        """See `Schedule.difficulty`."""
        return self.fitted.difficulty(step)


type AnySchedule = Schedule | FittedSchedule


def make_optimizer(schedule: Schedule, weight_decay: float = 0.05) -> optax.GradientTransformation:
    """Clipping, then Muon or AdamW by `param_group`; vectors do not decay."""
    rate = schedule.learning_rate

    def adamw(decay: float) -> optax.GradientTransformation:
        return optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=decay)

    groups: dict[Hashable, optax.GradientTransformation] = {
        "matrix": optax.contrib.muon(
            rate,
            weight_decay=weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrices,
        ),
        "table": adamw(weight_decay),
        "vector": adamw(0.0),
    }
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(groups, lambda params: jax.tree.map_with_path(_group_of, params)),
    )


def param_group(name: str) -> str:
    """ "matrix", "table" or "vector", by a parameter's path, such as `llava/text/norm/weight`."""
    *module, leaf = name.split("/")
    if leaf in ("bias", "class_embedding") or (leaf == "weight" and "norm" in module[-1]):
        return "vector"
    if leaf == "kernel" and ("layers" in module or "projector" in module):
        return "matrix"
    return "table"


def _matrices(params: Any) -> Any:
    """Every parameter is a stack of matrices, [*lead, m, n]."""

    def last_two(x: Array) -> optax.contrib.MuonDimensionNumbers:
        return optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

    return jax.tree.map(last_two, params)


def _group_of(path: tuple[Any, ...], leaf: Any) -> str:
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return param_group("/".join(name for name in names if name != "value"))
