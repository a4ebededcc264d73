"""Attention and coding of a model's passes over its cache."""

import dataclasses

import pallas_kernels
from models.layers.attention import dense_attention
from vkq_jax.array_types import Array, Bool, Float

__all__ = ["ModelBackend"]


@dataclasses.dataclass(frozen=True)
class ModelBackend(pallas_kernels.Backend):
    """The fused kernels, and a library's attention among the tokens of a prompt."""

    def attend_prompt(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        mask: Bool[Array, "B T S"],
        *,
        logits_scale: float | None,
        logits_soft_cap: float | None,
    ) -> Float[Array, "B T N H"]:
        """See `models.layers.attention.dense_attention`."""
        return dense_attention(
            query,
            key,
            value,
            mask,
            logits_scale=logits_scale,
            logits_soft_cap=logits_soft_cap,
        )
