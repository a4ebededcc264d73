"""Settings of Gemma's text decoders in config.json, versions 1 to 3."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from models.checkpoints.hf_fields import (
    ActivationName,
    Count,
    Factor,
    GemmaActivationName,
    Length,
    Theta,
    TokenIds,
    Width,
)
from models.checkpoints.hf_rope import rope_of
from models.checkpoints.hf_settings import Between, Settings
from models.layers.activations import Activation
from models.layers.rope_config import RopeConfig
from models.text.layer_types import FULL, SLIDING, every_nth_full
from models.text.settings import TextSettings
from vkq_jax.messages import some

__all__ = [
    "Gemma2Settings",
    "Gemma3Settings",
    "GemmaSettings",
    "rope_by_kind",
]

# Scores are multiplied by its inverse square root.
_QueryScalar = Annotated[float, Between(1e-6, 1e12)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GemmaSettings(TextSettings):
    """Fields that all versions have."""

    head_dim: Count | None = 256
    max_position_embeddings: Length = 8192
    mlp_bias: Literal[False] = False
    tie_word_embeddings: bool = True
    eos_token_id: TokenIds | None = 1
    # The families decide what sees what.
    use_bidirectional_attention: Literal[False] | None = None

    def switches(self) -> dict[str, Any]:
        """Norms by 1 + weight; token embeddings times the square root of their width."""
        return {"offset_norms": True, "embedding_multiplier": math.sqrt(self.hidden_size)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaSettings(_GemmaSettings):
    """Gemma: arXiv 2403.08295."""

    vocab_size: Width = 256000
    hidden_size: Width = 3072
    intermediate_size: Width = 24576
    num_hidden_layers: Count = 28
    num_attention_heads: Count = 16
    num_key_value_heads: Count | None = 16
    hidden_act: GemmaActivationName = Activation.GELU_TANH
    sliding_window: None = None
    layer_types: None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Settings(_GemmaSettings):
    """Gemma 2, arXiv 2408.00118: sandwich norms, soft-caps, a window in every other layer."""

    vocab_size: Width = 256000
    hidden_size: Width = 2304
    intermediate_size: Width = 9216
    num_hidden_layers: Count = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count | None = 4
    hidden_activation: ActivationName = Activation.GELU_TANH
    query_pre_attn_scalar: _QueryScalar = 256
    attn_logit_softcapping: Factor | None = 50.0
    # A family whose class in transformers applies it takes it from here.
    final_logit_softcapping: Factor | None = 30.0

    def switches(self) -> dict[str, Any]:
        """Fields of Gemma, and those that version 2 adds."""
        return super().switches() | {
            "hidden_act": self.hidden_activation,
            "sandwich_norms": True,
            "attention_multiplier": self.query_pre_attn_scalar**-0.5,
            "attn_logit_softcapping": self.attn_logit_softcapping,
        }

    def kinds(self) -> tuple[str, ...]:
        """By `layer_types` or, in files without them, the version's own order."""
        return self.layer_types or every_nth_full(self.num_hidden_layers, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Settings(Gemma2Settings):
    """Gemma 3, arXiv 2503.19786: norms of queries and keys, a RoPE for each kind of layers."""

    vocab_size: Width = 262208
    max_position_embeddings: Length = 131072
    rope_theta: Theta = 1e6
    rope_local_base_freq: Theta = 1e4
    sliding_window_pattern: Count = 6
    use_bidirectional_attention: Literal[False] | None = False
    # transformers applies neither in a model with pictures, whatever its file says.
    attn_logit_softcapping: None = None
    final_logit_softcapping: None = None

    def switches(self) -> dict[str, Any]:
        """Fields of Gemma 2, and those that version 3 adds."""
        return super().switches() | {"query_key_norm": True}

    def kinds(self) -> tuple[str, ...]:
        """By `layer_types` or, in files without them, by `sliding_window_pattern`."""
        own = every_nth_full(self.num_hidden_layers, self.sliding_window_pattern)
        return self.layer_types or own

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, RopeConfig]:
        """The frequencies of full layers, which `rope_scaling` stretches, and of sliding ones."""
        inside = f"{where}.rope_parameters"
        full, local = rope_by_kind(self.rope_parameters, inside)
        return (
            rope_of(full | (self.rope_scaling or {}), self, head_dim, f"{inside}.{FULL}"),
            rope_of(
                {"rope_theta": self.rope_local_base_freq} | local,
                self,
                head_dim,
                f"{inside}.{SLIDING}",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RopeByKind(Settings):
    """`rope_parameters` of a decoder whose kinds of layers have a RoPE each."""

    full_attention: dict[str, Any] | None = None
    sliding_attention: dict[str, Any] | None = None


def rope_by_kind(given: dict[str, Any] | None, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `rope_parameters` of layers without a window and of those with one.

    Raises:
        NotImplementedError: fields that are not supported, named.
        ValueError: a field of a wrong type, named.
    """
    if unread := _RopeByKind.unread(given or {}):
        raise NotImplementedError(f"{where} has {some(unread)}, which is not supported")
    kinds = _RopeByKind.read(given or {}, where)
    for kind in (FULL, SLIDING):
        if (getattr(kinds, kind) or {}).get("truncate") is False:
            # transformers looks for it beside the kinds, where it is for neither.
            raise NotImplementedError(f"{where}.{kind}.truncate=false; supported: true")
    return kinds.full_attention or {}, kinds.sliding_attention or {}
