"""Decoder layers that attend to pictures instead of tokens (Llama 3.2 Vision)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from models.layers.attention import dense_attention
from models.layers.linear import Maker
from models.sharding.placing import place_sequences
from models.text.block import Projections, decoder_mlp, decoder_norm
from models.text.config import TextConfig
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.passes.cross_pass import PromptPictures

__all__ = ["CrossAttend", "CrossBlock", "CrossReading", "read_pictures"]

type CrossAttend = Callable[
    [Array | int, Array, Array | None, Array | None, Any], tuple[Array, Any, Any]
]
"""`attend(layer, query, key, value, carry) -> (output, carry, out)`, as `Attend`, for pictures.

Keys and values are those of the prompt's pictures [B, V, K, H]; None where it has none.
"""


@dataclasses.dataclass(frozen=True)
class CrossReading:
    """The pictures of a pass, as a decoder's cross-attention layers take them.

    Attributes:
        attend: attention of the layers.
        features: of the prompt's pictures; None where there are those of earlier turns alone.
        sees: tokens that see a picture; the MLP after the attention is left out of the others.
    """

    attend: CrossAttend
    features: Float[Array, "B V hidden_size"] | None
    sees: Bool[Array, "B T"]


class CrossBlock(nnx.Module):
    """Attention to pictures, then a gated MLP, each times the tanh of a gate of its own."""

    def __init__(self, config: TextConfig, make: Maker):
        """Random parameters; gates are 0."""
        self.mesh = make.mesh
        self.input_layernorm = decoder_norm(config, make)
        self.cross_attn = Projections(dataclasses.replace(config, query_key_norm=True), make)
        self.cross_attn_attn_gate = nnx.Param(jnp.zeros(1, make.param_dtype))
        self.post_attention_layernorm = decoder_norm(config, make)
        self.mlp = decoder_mlp(config, make)
        self.cross_attn_mlp_gate = nnx.Param(jnp.zeros(1, make.param_dtype))

    def __call__(
        self,
        x: Float[Array, "B T hidden_size"],
        reading: CrossReading,
        layer: Int32[Array, ""] | int,
        carry: Any,
    ) -> tuple[Float[Array, "B T hidden_size"], Any, Any]:
        """The next residual stream, the next carry, and what `reading.attend` gave."""
        (query, _), key, value = self.cross_attn.query(self.input_layernorm(x)), None, None
        if reading.features is not None:
            key, value = self.cross_attn.key_value(reading.features)
        mixed, carry, out = reading.attend(layer, query, key, value, carry)
        mixed = self.cross_attn.o_proj(mixed.reshape(*x.shape[:2], -1).astype(x.dtype))
        x = x + _gated(place_sequences(self.mesh, mixed), self.cross_attn_attn_gate)
        added = place_sequences(self.mesh, self.mlp(self.post_attention_layernorm(x)))
        added = jnp.where(reading.sees[..., None], added, jnp.zeros_like(added))
        return x + _gated(added, self.cross_attn_mlp_gate), carry, out


def read_pictures(
    pictures: PromptPictures, features: Float[Array, "B V hidden_size"], logits_scale: float
) -> CrossReading:
    """Attention of whole prompts to their own pictures, without a cache."""
    sees_any = pictures.mask.any(-1)[..., None, None]

    def attend(layer, query, key, value, carry):
        mixed = dense_attention(query, key, value, pictures.mask, logits_scale=logits_scale)
        return jnp.where(sees_any, mixed, jnp.zeros_like(mixed)), carry, None

    return CrossReading(attend, features, pictures.shown >= 0)


def _gated(added: Array, gate: nnx.Param) -> Array:
    return jnp.tanh(gate[...].astype(added.dtype)).reshape(1, 1, 1) * added
