"""A judge with pretrained weights: what is trained between two towers that stay as they are.

The vision tower and the pretrained text tower are frozen, in bfloat16. Trained are the projector
and low-rank adapters (LoRA, arXiv 2106.09685) of the text tower's linear layers: a few megabytes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

import models
from models import Model
from models.families.llava.model import LlavaModel
from models.sharding.placing import place_shared
from vkq_apps.training.attention import Implementation
from vkq_apps.training.feeding import Chunk
from vkq_apps.training.forward import forward
from vkq_apps.training.losses import answer_loss
from vkq_apps.training.optimizer import AnySchedule
from vkq_apps.training.step import TrainState, take
from vkq_jax.array_types import Array, Float, Shaped

__all__ = ["AdaptedLinear", "Judge", "load_judge", "merged"]

_ADAPTED = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


class AdaptedLinear(nnx.Module):
    """A linear layer x @ kernel + bias and its adapter, x @ down @ up, which begins as 0."""

    def __init__(self, base: nnx.Linear, rank: int, key: Array):
        """`base`: one layer, or a stack of them [L, inputs, outputs]."""
        *lead, inputs, outputs = base.kernel.shape
        self.base, self.dtype = base, base.dtype
        drawn = jax.random.normal(key, (*lead, inputs, rank)) * inputs**-0.5
        self.down = nnx.LoRAParam(drawn)
        self.up = nnx.LoRAParam(jnp.zeros((*lead, rank, outputs)))

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        """The layer's output, in its compute dtype."""
        down, up = (factor[...].astype(self.dtype) for factor in (self.down, self.up))
        return self.base(x) + (x @ down) @ up


class Judge:
    """A model in training: what is frozen, what is trained, and the compiled step.

    Attributes:
        trained: float32 parameters at the start. frozen: the others.
        parameters: how many there are of both.
    """

    def __init__(
        self,
        model: Model,
        rank: int,
        prefix: tuple[int, ...],
        *,
        seed: int = 0,
        mesh: Mesh | None = None,
    ):
        """A judge at its start.

        Args:
            model: what `write_start` wrote, layers stacked.
            rank: of the adapters.
            prefix: ids before the image.
            seed: of the adapters.
            mesh: devices that share a step's batch, each with all parameters.
        """
        module = nnx.merge(model.graphdef, model.params)
        _adapt(module.text.layers, rank, jax.random.key(seed))
        self._graphdef, trained, frozen = nnx.split(module, _is_trained, ...)
        trained = jax.tree.map(lambda x: x.astype(jnp.float32), trained)
        self.trained, self.frozen = place_shared(mesh, (trained, frozen))
        self.parameters = sum(x.size for x in jax.tree.leaves((trained, frozen)))
        self._prefix, self._mesh = prefix, mesh

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        moments = jax.jit(_optimizer().init)(self.trained)
        return TrainState(self.trained, moments, jnp.zeros((), jnp.int32))

    def make_step(
        self, schedule: AnySchedule, implementation: Implementation, *, unroll: bool
    ) -> Callable[[TrainState, tuple[Chunk, ...], Array], tuple[TrainState, dict[str, Array]]]:
        """`(state, chunks, places) -> (state, losses)`; the given state's memory is used again."""
        optimizer = _optimizer()

        def loss_function(trained: Any, frozen: Any, batch: Chunk) -> Array:
            logits = self.logits(
                trained, frozen, batch.images, batch.rows, implementation, unroll=unroll
            )
            return answer_loss(logits, batch.rows)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(
            state: TrainState, frozen: Any, rate: Array, chunks: tuple[Chunk, ...], places: Array
        ) -> tuple[TrainState, dict[str, Array]]:
            batch = take(chunks, places, self._mesh)
            loss, gradient = jax.value_and_grad(loss_function)(state.params, frozen, batch)
            updates, moments = optimizer.update(gradient, state.optimizer, state.params)
            params = jax.tree.map(lambda x, u: x - rate * u, state.params, updates)
            losses = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
            return place_shared(self._mesh, TrainState(params, moments, state.step + 1)), losses

        def scheduled(
            state: TrainState, chunks: tuple[Chunk, ...], places: Array
        ) -> tuple[TrainState, dict[str, Array]]:
            # The rate is an argument, so that a schedule of another length compiles nothing.
            # One device computes it: operations outside jit take long on many.
            rate = schedule.learning_rate(state.step.addressable_data(0))
            return step(state, self.frozen, place_shared(self._mesh, rate), chunks, places)

        return scheduled

    def make_predict(self, implementation: Implementation) -> Callable[[Any, Array, Array], Array]:
        """`(trained, images, rows) -> most likely next token [B, R]`."""

        @jax.jit
        def predict(trained: Any, frozen: Any, images: Array, rows: Array) -> Array:
            logits = self.logits(trained, frozen, images, rows, implementation, unroll=False)
            return logits.argmax(-1)

        return lambda trained, images, rows: predict(trained, self.frozen, images, rows)

    def logits(
        self,
        trained: nnx.State,
        frozen: nnx.State,
        images: Shaped[Array, "B S S 3"],
        rows: Shaped[Array, "B 5 R"],
        implementation: Implementation,
        *,
        unroll: bool,
    ) -> Float[Array, "B R vocab"]:
        """Scores of the next token at every text position of rows of training."""
        module = cast(LlavaModel, nnx.merge(self._graphdef, trained, frozen))
        prefix = self._prefix
        return forward(module, images, rows, implementation, prefix=prefix, unroll=unroll)[0]


def load_judge(
    folder: Path,
    rank: int,
    prefix: tuple[int, ...],
    dtype: Any = jnp.bfloat16,
    mesh: Mesh | None = None,
) -> Judge:
    """The judge at its start, from the folder that `write_start` wrote."""
    return Judge(models.load(folder, dtype=dtype, layers_apart=False), rank, prefix, mesh=mesh)


def merged(model: Model, trained: nnx.State) -> Model:
    """The model with trained parts in the place of its own: adapters added to their layers.

    Sums are of float64, so that every machine's export has the same bits: tables that were
    calibrated for one fit all.

    Args:
        model: the start that they were trained from, in float32, layers stacked.
        trained: parameters as `Judge.trained`.
    """
    module = cast(LlavaModel, nnx.merge(model.graphdef, model.params))
    nnx.update(module.projector, trained["projector"])
    layers: Any = trained["text"]["layers"]
    for part, names in _ADAPTED.items():
        for name in names:
            kernel = getattr(getattr(module.text.layers, part), name).kernel
            sides = (layers[part][name][side][...] for side in ("down", "up"))
            start, down, up = (np.asarray(x, np.float64) for x in (kernel[...], *sides))
            kernel[...] = jnp.asarray(start + down @ up, jnp.float32)
    return dataclasses.replace(model, params=nnx.state(module))


def _adapt(layers: Any, rank: int, key: Array) -> None:
    for part, names in _ADAPTED.items():
        for name in names:
            key, own = jax.random.split(key)
            block = getattr(layers, part)
            setattr(block, name, AdaptedLinear(getattr(block, name), rank, own))


def _is_trained(path: tuple[Any, ...], value: Any) -> bool:
    return path[0] == "projector" or path[-1] in ("down", "up")


def _optimizer() -> optax.GradientTransformation:
    """Clipping, then Adam's direction: no decay, for the factors are small and the steps few."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.95))
