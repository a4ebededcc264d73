"""Settings of Phi-3's text decoder in config.json."""

import dataclasses
from typing import Any, Literal

from models.checkpoints.hf_fields import Count, Epsilon, Length, TokenIds, Width
from models.checkpoints.hf_rope import given_rope, rope_of
from models.layers.rope_config import RopeConfig, RopeKind
from models.text.settings import TextSettings

__all__ = ["Phi3Settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phi3Settings(TextSettings):
    """Phi-3, arXiv 2404.14219: fused projections; RoPE may rotate a part of each head only."""

    vocab_size: Width = 32064
    hidden_size: Width = 3072
    intermediate_size: Width = 8192
    num_key_value_heads: Count | None = None
    max_position_embeddings: Length = 4096
    original_max_position_embeddings: Length | None = 4096
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Length | None = None
    layer_types: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    eos_token_id: TokenIds | None = 32000
    ignored = TextSettings.ignored | {"embd_pdrop", "resid_pdrop"}

    def switches(self) -> dict[str, Any]:
        """The switches of Phi-3."""
        return {"fused_projections": True}

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, None]:
        """See `TextSettings.ropes`; older files have other names for longrope."""
        given, where = given_rope(self, where)
        old = [key for key in ("type", "rope_type") if given.get(key) in ("su", "yarn")]
        renamed = dict.fromkeys(old, RopeKind.LONGROPE.value)
        return rope_of(given | renamed, self, head_dim, where, partial=True), None
