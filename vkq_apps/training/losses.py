"""Losses: the answers' tokens, and what the auxiliary head should see in each patch."""

import jax.numpy as jnp
import optax

from vkq_apps.training.pictures import NUM_FACTS
from vkq_jax.array_types import Array, Float, Shaped

__all__ = ["answer_loss", "patch_loss"]

_BACKGROUND_WEIGHT = 0.05
"""Weight of a slot in which nothing is centred: most of them."""


def answer_loss(
    logits: Float[Array, "B R vocab"], rows: Shaped[Array, "B 5 R"]
) -> Float[Array, ""]:
    """Weighted mean cross-entropy of the answers' tokens.

    Each of an answer's n tokens weighs n^-1/2: by the token, a colour or a count would weigh next
    to nothing beside a line of text; by the answer, a line would learn too slowly.
    """
    turn, target = rows[:, 1], rows[:, 3]
    asked = (target >= 0).astype(jnp.float32)
    same = (turn[:, :, None] == turn[:, None, :]).astype(jnp.float32)
    length = jnp.einsum("brs,bs->br", same, asked)
    weights = asked * jnp.maximum(length, 1.0) ** -0.5
    return (_cross_entropy(logits, jnp.maximum(target, 0)) * weights).sum() / weights.sum()


def patch_loss(
    logits: Float[Array, "B P slots classes"], labels: Shaped[Array, "B P slots"]
) -> Float[Array, ""]:
    """Weighted mean cross-entropy over the slots of all patches; a fact not stated weighs 0."""
    things = jnp.arange(labels.shape[-1]) < labels.shape[-1] - NUM_FACTS
    weights = jnp.where(labels == 0, _BACKGROUND_WEIGHT * things, 1.0)
    return (_cross_entropy(logits, labels) * weights).sum() / weights.sum()


def _cross_entropy(
    logits: Float[Array, "*lead classes"], labels: Shaped[Array, "*lead"]
) -> Float[Array, "*lead"]:
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
