"""Attention and coding of a model's passes over its cache."""

import dataclasses
from typing import Unpack

import pallas_kernels
from models.layers.attention import dense_attention
from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.attention.backend import LogitsOptions

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
        **options: Unpack[LogitsOptions],
    ) -> Float[Array, "B T N H"]:
        """See `models.layers.attention.dense_attention`."""
        return dense_attention(query, key, value, mask, **options)
