"""Settings of Qwen3.5's text decoder in config.json."""

import dataclasses
from typing import Annotated, Any, Literal

from models.checkpoints.hf_fields import NO_EFFECT_OF_ROUTERS, Count, Length, TokenIds, Width
from models.checkpoints.hf_rope import given_rope, rope_of
from models.checkpoints.hf_settings import Between
from models.layers.moe import MoeConfig
from models.layers.rope_config import MRope, RopeConfig
from models.text.config import LinearAttentionConfig
from models.text.layer_types import FULL, LINEAR, every_nth_full
from models.text.qwen_moe_settings import check_experts_per_token
from models.text.settings import TextSettings
from vkq_jax.messages import some

__all__ = ["Qwen35MoeTextSettings", "Qwen35TextSettings"]

_KINDS = {LINEAR, FULL}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen35TextSettings(TextSettings):
    """A decoder with linear attention in most layers, gated attention in the others."""

    vocab_size: Width = 248320
    intermediate_size: Width = 12288
    num_attention_heads: Count = 16
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    max_position_embeddings: Length = 32768
    partial_rotary_factor: float | None = 0.25
    sliding_window: None = None
    mlp_bias: Literal[False] = False
    eos_token_id: TokenIds | None = None
    linear_conv_kernel_dim: Annotated[int, Between(2, 64)] = 4
    linear_key_head_dim: Count = 128
    linear_value_head_dim: Count = 128
    linear_num_key_heads: Count = 16
    linear_num_value_heads: Count = 32
    full_attention_interval: Count = 4
    mrope = MRope((11, 11, 10), interleaved=True)

    def switches(self) -> dict[str, Any]:
        """The kinds of the layers, norms, and gates.

        Raises:
            NotImplementedError: other kinds of layers, or just one.
            ValueError: another number of kinds than layers, or of heads than divides.
        """
        kinds, where = self.layer_types, "text_config"
        if kinds is None:
            kinds = every_nth_full(self.num_hidden_layers, self.full_attention_interval, LINEAR)
        if len(kinds) != self.num_hidden_layers:
            raise ValueError(
                f"{where}.layer_types: expected one for each of the {self.num_hidden_layers} "
                f"layers, got {len(kinds)}"
            )
        if set(kinds) != _KINDS:
            raise NotImplementedError(
                f"{where}.layer_types has {some(sorted(set(kinds)))}; supported: both of "
                f"{some(sorted(_KINDS))}"
            )
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError(
                f"{where}.linear_num_value_heads: expected a multiple of linear_num_key_heads="
                f"{self.linear_num_key_heads}, got {self.linear_num_value_heads}"
            )
        return {
            "query_key_norm": True,
            "offset_norms": True,
            "attention_gate": True,
            "linear": LinearAttentionConfig(
                layers=tuple(i for i, kind in enumerate(kinds) if kind == LINEAR),
                kernel=self.linear_conv_kernel_dim,
                num_key_heads=self.linear_num_key_heads,
                num_value_heads=self.linear_num_value_heads,
                key_head_dim=self.linear_key_head_dim,
                value_head_dim=self.linear_value_head_dim,
            ),
        }

    def kinds(self) -> None:
        """No layer has a window."""

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, None]:
        """See `TextSettings.ropes`; some channels of a head are rotated."""
        given, where = given_rope(self, where)
        return rope_of(given, self, head_dim, where, mrope=self.mrope, partial=True), None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen35MoeTextSettings(Qwen35TextSettings):
    """The same decoder with experts in each layer, beside one that all tokens go through."""

    hidden_size: Width = 2048
    num_hidden_layers: Count = 40
    num_key_value_heads: Count | None = 2
    num_experts: Count = 256
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Width = 512
    shared_expert_intermediate_size: Width = 512
    ignored = Qwen35TextSettings.ignored | NO_EFFECT_OF_ROUTERS

    def switches(self) -> dict[str, Any]:
        """The switches of Qwen3.5, and its experts.

        Raises:
            ValueError: more experts for a token than there are.
        """
        check_experts_per_token(self.num_experts_per_tok, self.num_experts)
        moe = MoeConfig(
            self.num_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            shared_expert_intermediate_size=self.shared_expert_intermediate_size,
            shared_expert_gate=True,
        )
        return super().switches() | {"moe": moe}
