"""Settings of the text decoders of GLM-4.1V and GLM-4.5V in config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from models.checkpoints.hf_fields import (
    NO_EFFECT_OF_ROUTERS,
    Count,
    Epsilon,
    Factor,
    Length,
    TokenIds,
    Width,
)
from models.checkpoints.hf_rope import given_rope, rope_of
from models.checkpoints.hf_settings import Between
from models.layers.moe import MoeConfig
from models.layers.rope_config import MRope, RopeConfig
from models.text.settings import TextSettings

__all__ = ["Glm4vMoeTextSettings", "Glm4vTextSettings", "GlmOcrTextSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4vTextSettings(TextSettings):
    """Sandwich norms, biases of queries, keys and values, RoPE of a part of each head, in pairs."""

    vocab_size: Width = 151552
    intermediate_size: Width = 13696
    num_hidden_layers: Count = 40
    num_key_value_heads: Count | None = 2
    max_position_embeddings: Length = 32768
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: None = None
    layer_types: None = None
    attention_bias: Literal[True] = True
    mlp_bias: Literal[False] = False
    eos_token_id: TokenIds | None = None
    mrope = MRope((8, 12, 12))
    head_dim_is_free = False

    def switches(self) -> dict[str, Any]:
        """The switches of GLM's blocks."""
        return {"attention_output_bias": False, "sandwich_norms": True, "fused_mlp": True}

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, None]:
        """Pairs of channels lie side by side."""
        given, where = given_rope(self, where)
        rope = rope_of(given, self, head_dim, where, mrope=self.mrope, partial=True)
        return dataclasses.replace(rope, interleaved=True), None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlmOcrTextSettings(Glm4vTextSettings):
    """The decoder of GLM-OCR: no biases, heads of a width of their own."""

    vocab_size: Width = 59392
    hidden_size: Width = 1024
    intermediate_size: Width = 4096
    num_hidden_layers: Count = 16
    num_attention_heads: Count = 16
    num_key_value_heads: Count | None = 8
    max_position_embeddings: Length = 131072
    head_dim_is_free = True
    attention_bias: Literal[False] = False  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4vMoeTextSettings(TextSettings):
    """Blocks of LLaMA's kind with experts in all layers but the first; RoPE of a part of each head.

    A router of sigmoids chooses from groups of experts; every token also goes through a shared one.
    """

    vocab_size: Width = 151424
    intermediate_size: Width = 10944
    num_hidden_layers: Count = 46
    num_attention_heads: Count = 96
    max_position_embeddings: Length = 65536
    partial_rotary_factor: float | None = 0.5
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: None = None
    layer_types: None = None
    attention_bias: bool = True
    mlp_bias: Literal[False] = False
    eos_token_id: TokenIds | None = None
    moe_intermediate_size: Width = 1408
    num_experts_per_tok: Count = 8
    n_shared_experts: Annotated[int, Between(0, 64)] = 1
    n_routed_experts: Count = 128
    routed_scaling_factor: Factor = 1.0
    n_group: Count = 1
    topk_group: Count = 1
    first_k_dense_replace: Annotated[int, Between(0, 2**12)] = 1
    norm_topk_prob: bool = True
    ignored = TextSettings.ignored | NO_EFFECT_OF_ROUTERS
    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}
    mrope = MRope((8, 12, 12))

    def switches(self) -> dict[str, Any]:
        """The experts, and the layers without.

        Raises:
            ValueError: numbers of experts and groups that contradict each other.
        """
        count, groups, chosen = self.n_routed_experts, self.n_group, self.num_experts_per_tok
        within = count // groups
        if (
            count % groups
            or self.topk_group > groups
            or within < 2
            or (chosen > within * self.topk_group)
        ):
            raise ValueError(
                "text_config: expected n_group groups of 2 or more of the n_routed_experts, "
                "topk_group of them, and num_experts_per_tok up to what those hold; got "
                f"{groups} of {count}, {self.topk_group} and {chosen}"
            )
        dense = tuple(range(min(self.first_k_dense_replace, self.num_hidden_layers)))
        switches: dict[str, Any] = {"attention_output_bias": False}
        if len(dense) == self.num_hidden_layers:
            return switches
        moe = MoeConfig(
            num_experts=count,
            num_experts_per_tok=chosen,
            moe_intermediate_size=self.moe_intermediate_size,
            norm_topk_prob=self.norm_topk_prob,
            scoring_func="sigmoid",
            n_group=groups,
            topk_group=self.topk_group,
            routed_scaling_factor=self.routed_scaling_factor,
            shared_expert_intermediate_size=(self.moe_intermediate_size * self.n_shared_experts),
        )
        return switches | {"moe": moe, "dense_layers": dense}

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, None]:
        """See `TextSettings.ropes`; some channels of a head are rotated."""
        given, where = given_rope(self, where)
        return rope_of(given, self, head_dim, where, mrope=self.mrope, partial=True), None
