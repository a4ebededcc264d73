"""Settings of a text decoder in config.json: fields, ranges, and transformers' defaults."""

import dataclasses
from typing import Any, ClassVar, Literal

from models.checkpoints.hf_fields import (
    NO_EFFECT,
    ActivationName,
    Count,
    Epsilon,
    Factor,
    Length,
    Theta,
    TokenIds,
    Width,
)
from models.checkpoints.hf_rope import read_rope
from models.checkpoints.hf_settings import Settings
from models.layers.activations import Activation
from models.layers.rope_config import MRope, RopeConfig
from models.text.config import TextConfig
from models.text.layer_types import FULL, SLIDING
from vkq_jax.messages import some

__all__ = [
    "GraniteSettings",
    "LlamaSettings",
    "MinistralSettings",
    "MistralSettings",
    "Qwen2Settings",
    "Qwen3Settings",
    "TextSettings",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """Fields of a decoder of LLaMA's kind; subclasses are the families of decoders."""

    vocab_size: Width = 32000
    hidden_size: Width = 4096
    intermediate_size: Width = 14336
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = 8
    head_dim: Count | None = None
    hidden_act: ActivationName = Activation.SILU
    max_position_embeddings: Length = 4096 * 32
    original_max_position_embeddings: Length | None = None
    partial_rotary_factor: float | None = None
    rope_theta: Theta = 10000.0
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rms_norm_eps: Epsilon = 1e-6
    sliding_window: Length | None = 4096
    layer_types: tuple[str, ...] | None = None
    attention_chunk_size: None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    eos_token_id: TokenIds | None = 2
    ignored = NO_EFFECT | {"model_type"}
    mrope: ClassVar[MRope | None] = None
    """M-RoPE of a file that does not state its sections; None in decoders without M-RoPE."""
    head_dim_is_free: ClassVar[bool] = True
    """Whether `head_dim` may differ from hidden_size / num_attention_heads."""

    def to_config(self, where: str, *, tie_word_embeddings: bool) -> TextConfig:
        """The decoder's configuration.

        Args:
            where: name of these settings in config.json.
            tie_word_embeddings: whether the embedding doubles as the head; the family decides.

        Raises:
            NotImplementedError: a setting that is not supported, named.
            ValueError: settings that contradict each other, named.
        """
        heads, head_dim = self.num_attention_heads, self._head_dim(where)
        kv_heads = heads if self.num_key_value_heads is None else self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(
                f"{where}.num_key_value_heads: expected a divisor of "
                f"num_attention_heads={heads}, got {kv_heads}"
            )
        sliding_window, full_layers = self._window(where)
        rope, sliding_rope = self.ropes(head_dim, where)
        config = TextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rope=rope,
            sliding_rope=None if sliding_window is None else sliding_rope,
            tie_word_embeddings=tie_word_embeddings,
            attention_bias=self.attention_bias,
            attention_output_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            hidden_act=self.hidden_act,
            rms_norm_eps=self.rms_norm_eps,
            sliding_window=sliding_window,
            full_layers=full_layers,
        )
        return dataclasses.replace(config, **self.switches())

    def switches(self) -> dict[str, Any]:
        """Fields of `TextConfig` in which a family of decoders differs from LLaMA's."""
        return {}

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, RopeConfig | None]:
        """RoPE of queries and keys, and that of sliding layers where it differs there."""
        return read_rope(self, head_dim, where, mrope=self.mrope), None

    def kinds(self) -> tuple[str, ...] | None:
        """The kind of each layer, where layers differ."""
        return self.layer_types

    def _head_dim(self, where: str) -> int:
        heads = self.num_attention_heads
        if self.head_dim is not None and self.head_dim_is_free:
            return self.head_dim
        if self.hidden_size % heads:
            raise ValueError(
                f"{where}.hidden_size: expected a multiple of num_attention_heads={heads}, "
                f"got {self.hidden_size}"
            )
        found = self.hidden_size // heads
        if self.head_dim not in (None, found):
            raise NotImplementedError(
                f"{where}.head_dim={self.head_dim}; supported: {found}, which is hidden_size / "
                "num_attention_heads"
            )
        return found

    def _window(self, where: str) -> tuple[int | None, tuple[int, ...]]:
        """Width of the sliding window, None without one, and the layers that it leaves alone."""
        kinds = self.kinds()
        if kinds is None:
            return self.sliding_window, ()
        if unknown := sorted(set(kinds) - {FULL, SLIDING}):
            raise NotImplementedError(f"{where}.layer_types has {some(unknown)}")
        if len(kinds) != self.num_hidden_layers:
            raise ValueError(
                f"{where}.layer_types: expected one for each of the {self.num_hidden_layers} "
                f"layers, got {len(kinds)}"
            )
        full = tuple(i for i, kind in enumerate(kinds) if kind == FULL)
        if len(full) == len(kinds):
            return None, ()
        if self.sliding_window is None:
            raise ValueError(f"{where}.layer_types has {SLIDING}, sliding_window is None")
        return self.sliding_window, full


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaSettings(TextSettings):
    """A decoder without a sliding window."""

    intermediate_size: Width = 11008
    num_key_value_heads: Count | None = None
    max_position_embeddings: Length = 2048
    sliding_window: None = None
    layer_types: None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteSettings(LlamaSettings):
    """A decoder with multipliers of embeddings, visual ones too, of scores and of residuals."""

    embedding_multiplier: Factor = 1.0
    residual_multiplier: Factor = 1.0
    attention_multiplier: Factor = 1.0
    # Models with pictures leave their logits as they are in transformers.
    ignored = LlamaSettings.ignored | {"logits_scaling"}

    def switches(self) -> dict[str, Any]:
        """The multipliers."""
        return {
            "embedding_multiplier": self.embedding_multiplier,
            "feature_multiplier": self.embedding_multiplier,
            "residual_multiplier": self.residual_multiplier,
            "attention_multiplier": self.attention_multiplier,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralSettings(TextSettings):
    """A decoder with a sliding window in all layers."""

    layer_types: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinistralSettings(TextSettings):
    """A decoder with a sliding window in those layers that are called so."""

    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Settings(TextSettings):
    """A decoder with biases of queries, keys and values; upper layers may have a window."""

    vocab_size: Width = 151936
    intermediate_size: Width = 22016
    num_key_value_heads: Count | None = 32
    max_position_embeddings: Length = 32768
    attention_bias: Literal[True] = True
    mlp_bias: Literal[False] = False
    use_sliding_window: bool = False
    max_window_layers: int = 28
    eos_token_id: TokenIds | None = None

    def switches(self) -> dict[str, Any]:
        """The switches of Qwen2's attention."""
        return {"attention_output_bias": False}

    def kinds(self) -> tuple[str, ...]:
        """By `layer_types` or, in files without them, by `max_window_layers`."""
        if not self.use_sliding_window or self.sliding_window is None:
            return (FULL,) * self.num_hidden_layers
        if self.layer_types is not None:
            return self.layer_types
        full = min(max(self.max_window_layers, 0), self.num_hidden_layers)
        sliding = self.num_hidden_layers - full
        return (FULL,) * full + (SLIDING,) * sliding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Settings(Qwen2Settings):
    """A decoder with norms of queries and keys."""

    head_dim: Count | None = 128
    attention_bias: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]

    def switches(self) -> dict[str, Any]:
        """The switches of Qwen3's attention."""
        return {"query_key_norm": True}
