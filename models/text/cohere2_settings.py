"""Settings of Cohere's second text decoder in config.json."""

import dataclasses
from typing import Any

from models.checkpoints.hf_fields import Count, Epsilon, Length, TokenIds, Width
from models.layers.rope_config import RopeConfig
from models.text.layer_types import every_nth_full
from models.text.settings import TextSettings

__all__ = ["Cohere2Settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohere2Settings(TextSettings):
    """Parallel blocks; sliding layers have RoPE, full ones do not."""

    vocab_size: Width = 256000
    hidden_size: Width = 8192
    intermediate_size: Width = 22528
    num_hidden_layers: Count = 40
    num_attention_heads: Count = 64
    num_key_value_heads: Count | None = None
    max_position_embeddings: Length = 8192
    layer_norm_eps: Epsilon = 1e-5
    sliding_window_pattern: Count = 4
    tie_word_embeddings: bool = True
    eos_token_id: TokenIds | None = 255001
    # Models with pictures leave their logits as they are in transformers.
    ignored = TextSettings.ignored | {"logit_scale"}

    def switches(self) -> dict[str, Any]:
        """Norms, blocks and layers of Cohere's kind."""
        return {
            "rms_norm_eps": self.layer_norm_eps,
            "layer_norms": True,
            "parallel_blocks": True,
            "rope_in_full_layers": False,
        }

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, None]:
        """Pairs of channels lie side by side."""
        rope, _ = super().ropes(head_dim, where)
        return dataclasses.replace(rope, interleaved=True), None

    def kinds(self) -> tuple[str, ...]:
        """By `layer_types` or, in files without them, by `sliding_window_pattern`."""
        if self.layer_types is not None:
            return self.layer_types
        return every_nth_full(self.num_hidden_layers, self.sliding_window_pattern)
