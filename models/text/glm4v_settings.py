"""Settings of GLM-4.1V's text decoder in config.json."""

import dataclasses
from typing import Any, Literal

from models.checkpoints.hf_fields import Count, Epsilon, Length, TokenIds, Width
from models.checkpoints.hf_rope import given_rope, rope_of
from models.layers.rope import MRope, RopeConfig
from models.text.settings import TextSettings

__all__ = ["Glm4vTextSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4vTextSettings(TextSettings):
    """Sandwich norms, biases of queries, keys and values; a part of each head turns, in pairs."""

    vocab_size: Width = 151552
    intermediate_size: Width = 13696
    num_hidden_layers: Count = 40
    num_key_value_heads: Count | None = 2
    max_position_embeddings: Length = 32768
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: None = None
    layer_types: None = None
    head_dim: None = None
    attention_bias: Literal[True] = True
    mlp_bias: Literal[False] = False
    eos_token_id: TokenIds | None = None
    mrope = MRope((8, 12, 12))

    def switches(self) -> dict[str, Any]:
        """The switches of GLM's blocks."""
        return {"attention_output_bias": False, "sandwich_norms": True, "fused_mlp": True}

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, None]:
        """Pairs of channels lie side by side."""
        given, where = given_rope(self, where)
        rope = rope_of(given, self, head_dim, where, mrope=self.mrope, partial=True)
        return dataclasses.replace(rope, interleaved=True), None
