"""One step of training, compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from models.sharding.placing import place_sequences, place_shared
from vkq_apps.training.attention import Implementation
from vkq_apps.training.encoding import RECIPE
from vkq_apps.training.evaluation import Predict
from vkq_apps.training.feeding import Chunk
from vkq_apps.training.forward import forward
from vkq_apps.training.losses import answer_loss, patch_loss
from vkq_apps.training.model import TrainedModel
from vkq_apps.training.optimizer import Schedule, make_optimizer
from vkq_jax.array_types import Array
from vkq_jax.pytree import frozen_pytree

__all__ = ["TrainState", "bind", "initial_state", "make_predict", "make_train_step", "take"]


@frozen_pytree
class TrainState:
    """Everything that a step changes.

    Attributes:
        params: float32 parameters.
        optimizer: moments and counts.
        step: steps done, int32 scalar.
    """

    params: Any
    optimizer: Any
    step: Array


def initial_state(params: Any, schedule: Schedule) -> TrainState:
    """The state before the first step."""
    optimizer = jax.jit(make_optimizer(schedule).init)(params)
    return TrainState(params, optimizer, jnp.zeros((), jnp.int32))


@functools.cache
def make_train_step(
    graphdef: nnx.GraphDef[TrainedModel],
    schedule: Schedule,
    implementation: Implementation,
    *,
    unroll: bool,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, tuple[Chunk, ...], Array], tuple[TrainState, dict[str, Array]]]:
    """`(state, chunks, places) -> (state, losses)`; the given state's memory is used again.

    Cached, so that a second piece of training in a process compiles nothing.
    """
    optimizer = make_optimizer(schedule)

    def loss_function(params: Any, batch: Chunk, step: Array) -> tuple[Array, dict[str, Array]]:
        model = nnx.merge(graphdef, params)
        logits, features = forward(
            model.llava,
            batch.images,
            batch.rows,
            implementation,
            prefix=RECIPE.prefix,
            unroll=unroll,
        )
        answers = answer_loss(logits, batch.rows)
        patches = patch_loss(model.classifier(features), batch.labels)
        total = answers + schedule.auxiliary_weight(step) * patches
        return total, {"loss": answers, "patch_loss": patches}

    def train_step(
        state: TrainState, chunks: tuple[Chunk, ...], places: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        batch = take(chunks, places, mesh)
        gradient, losses = jax.grad(loss_function, has_aux=True)(state.params, batch, state.step)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        losses |= {"gradient_norm": optax.tree.norm(gradient)}
        params = optax.apply_updates(state.params, updates)
        return place_shared(mesh, TrainState(params, moments, state.step + 1)), losses

    return jax.jit(train_step, donate_argnums=0)


@functools.cache
def make_predict(
    graphdef: nnx.GraphDef[TrainedModel], implementation: Implementation
) -> Callable[[Any, Array, Array], Array]:
    """`(params, images, rows) -> most likely next token [B, R]`."""

    @jax.jit
    def predict(params: Any, images: Array, rows: Array) -> Array:
        model = nnx.merge(graphdef, params)
        return forward(
            model.llava, images, rows, implementation, prefix=RECIPE.prefix, unroll=False
        )[0].argmax(-1)

    return predict


def bind(
    predict: Callable[[Any, Array, Array], Array], params: Any, mesh: Mesh | None = None
) -> Predict:
    """`predict` of these parameters, its examples split over `mesh`."""
    return lambda images, rows: predict(params, *place_sequences(mesh, (images, rows)))


def take(chunks: tuple[Chunk, ...], places: Array, mesh: Mesh | None = None) -> Chunk:
    """The examples at `places` of each chunk, see `Feed.sources`, as one batch split over `mesh`.

    No device reads another one's part of a chunk.
    """
    devices = places.shape[1]

    def pick(*parts: Array) -> Array:
        split = [x.reshape(devices, -1, *x.shape[1:]) for x in parts]
        picked = [jax.vmap(_at)(x, index) for x, index in zip(split, places, strict=True)]
        joined = jnp.concatenate(picked, axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    return place_sequences(mesh, jax.tree.map(pick, *chunks))


def _at(x: Array, index: Array) -> Array:
    return jnp.take(x, index, axis=0)
