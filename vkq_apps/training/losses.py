"""Losses: the answers' tokens, and what the auxiliary head should see in each patch."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Shaped

__all__ = ["answer_loss", "patch_loss"]

_BACKGROUND_WEIGHT = 0.05
"""Weight of a slot in which nothing is centred: most of them."""


def answer_loss(
    logits: Float[Array, "B R vocab"], target: Shaped[Array, "B R"]
) -> Float[Array, ""]:
    """Mean cross-entropy over the positions whose target is not negative."""
    counts = (target >= 0).astype(jnp.float32)
    return (_cross_entropy(logits, jnp.maximum(target, 0)) * counts).sum() / counts.sum()


def patch_loss(
    logits: Float[Array, "B P two classes"], labels: Shaped[Array, "B P two"]
) -> Float[Array, ""]:
    """Weighted mean cross-entropy over the slots of all patches."""
    weights = jnp.where(labels == 0, _BACKGROUND_WEIGHT, 1.0)
    return (_cross_entropy(logits, labels) * weights).sum() / weights.sum()


def _cross_entropy(
    logits: Float[Array, "*lead classes"], labels: Shaped[Array, "*lead"]
) -> Float[Array, "*lead"]:
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.int32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
