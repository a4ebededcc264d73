"""Settings of the text decoders of Qwen-VL models in config.json."""

import dataclasses
from typing import Any, Literal

from models.checkpoints.hf_fields import (
    NO_EFFECT_OF_ROUTERS,
    Count,
    Epsilon,
    Length,
    Theta,
    TokenIds,
    Width,
)
from models.layers.rope_config import MRope
from models.text.qwen_moe_settings import MoeSettings
from models.text.settings import Qwen2Settings, TextSettings

__all__ = ["Qwen2VLTextSettings", "Qwen3VLMoeTextSettings", "Qwen3VLTextSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2VLTextSettings(Qwen2Settings):
    """Qwen2's decoder with M-RoPE: that of Qwen2-VL and Qwen2.5-VL."""

    vocab_size: Width = 152064
    hidden_size: Width = 8192
    intermediate_size: Width = 29568
    num_hidden_layers: Count = 80
    num_attention_heads: Count = 64
    num_key_value_heads: Count | None = 8
    rope_theta: Theta = 1e6
    rms_norm_eps: Epsilon = 1e-5
    max_window_layers: int = 80
    eos_token_id: TokenIds | None = 151645
    mrope = MRope((16, 24, 24))
    head_dim_is_free = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VLTextSettings(TextSettings):
    """Qwen3's decoder with interleaved M-RoPE and without windows."""

    vocab_size: Width = 151936
    intermediate_size: Width = 22016
    num_key_value_heads: Count | None = 32
    head_dim: Count | None = 128
    max_position_embeddings: Length = 128000
    rope_theta: Theta = 500000.0
    sliding_window: None = None
    layer_types: None = None
    mlp_bias: Literal[False] = False
    eos_token_id: TokenIds | None = None
    mrope = MRope((24, 20, 20), interleaved=True)

    def switches(self) -> dict[str, Any]:
        """The switches of Qwen3's attention."""
        return {"query_key_norm": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VLMoeTextSettings(MoeSettings, Qwen3VLTextSettings):
    """The same decoder with mixtures of experts."""

    hidden_size: Width = 2048
    intermediate_size: Width = 5632
    num_hidden_layers: Count = 24
    num_attention_heads: Count = 16
    num_key_value_heads: Count | None = 16
    head_dim: Count | None = None
    tie_word_embeddings: bool = True
    num_experts: Count = 60
    num_experts_per_tok: Count = 4
    moe_intermediate_size: Width = 1408
    # Weights of a token's experts always sum to 1 in this decoder.
    ignored = TextSettings.ignored | NO_EFFECT_OF_ROUTERS | {"norm_topk_prob"}

    def switches(self) -> dict[str, Any]:
        """The switches of Qwen3-VL, and its experts."""
        return super().switches() | self.experts(self.num_hidden_layers, norm_topk_prob=True)
