"""Settings of the text decoder of PaddleOCR-VL in config.json: ERNIE 4.5's with M-RoPE."""

import dataclasses
from typing import Any, Literal

from models.checkpoints.hf_fields import Count, Epsilon, Length, Theta, Width
from models.layers.rope_config import MRope
from models.text.settings import TextSettings

__all__ = ["PaddleOcrTextSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddleOcrTextSettings(TextSettings):
    """LLaMA's blocks, in which one field decides about all biases."""

    vocab_size: Width = 103424
    hidden_size: Width = 1024
    intermediate_size: Width = 3072
    num_hidden_layers: Count = 18
    num_attention_heads: Count = 16
    num_key_value_heads: Count | None = 2
    head_dim: Count | None = 128
    max_position_embeddings: Length = 131072
    rope_theta: Theta = 500000.0
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool = True
    sliding_window: None = None
    layer_types: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    use_bias: bool = False
    mrope = MRope((16, 24, 24))

    def switches(self) -> dict[str, Any]:
        """The biases."""
        names = ("attention_bias", "attention_output_bias", "mlp_bias")
        return dict.fromkeys(names, self.use_bias)
