"""Settings of GLM's vision towers in config.json."""

import dataclasses
from typing import Any

from models.checkpoints.hf_fields import Count, Epsilon, Side, Width
from models.vision.grid_settings import SizedVisionSettings

__all__ = ["Glm4vVisionSettings", "GlmOcrVisionSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4vVisionSettings(SizedVisionSettings):
    """`vision_config` of GLM-4.1V: a bicubic table of positions; MLPs as wide as visual tokens."""

    depth: Count = 24
    hidden_size: Width = 1536
    num_heads: Count = 12
    attention_bias: bool = False
    image_size: Side = 336
    rms_norm_eps: Epsilon = 1e-5
    out_hidden_size: Width = 4096
    intermediate_size: Width = 13696

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        return self.out_hidden_size

    @property
    def merger_width(self) -> int:
        """Hidden channels of the projector's MLP."""
        return self.intermediate_size

    def encoder_switches(self) -> dict[str, Any]:
        """Blocks of the text decoder's kind, biases of queries, keys and values apart."""
        return {
            "layer_norm_eps": self.rms_norm_eps,
            "rms_norms": True,
            "gated_mlp": True,
            "attention_bias": self.attention_bias,
            "attention_output_bias": False,
            "mlp_bias": False,
        }

    def switches(self) -> dict[str, Any]:
        """Norms around the blocks, and the table."""
        return {
            "patch_bias": True,
            "pre_norm": True,
            "post_norm": True,
            "table_side": max(self.image_size // self.patch_size, 1),
            "table_bicubic": True,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlmOcrVisionSettings(Glm4vVisionSettings):
    """`vision_config` of GLM-OCR: no table of positions, norms of each head's queries and keys."""

    hidden_size: Width = 1024
    num_heads: Count = 16
    attention_bias: bool = True
    out_hidden_size: Width = 1536
    intermediate_size: Width = 4096

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        return self.intermediate_size

    @property
    def merger_width(self) -> int:
        """Hidden channels of the projector's MLP."""
        return self.out_hidden_size * self.in_channels

    def encoder_switches(self) -> dict[str, Any]:
        """One field decides about the biases of all layers."""
        return super().encoder_switches() | {
            "attention_output_bias": self.attention_bias,
            "mlp_bias": self.attention_bias,
            "query_key_head_norms": True,
        }

    def switches(self) -> dict[str, Any]:
        """A norm after the blocks alone."""
        return {"patch_bias": True, "post_norm": True}
