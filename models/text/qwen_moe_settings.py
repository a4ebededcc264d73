"""Experts of Qwen3's text decoders in config.json."""

import dataclasses
from typing import Any, Literal

from models.checkpoints.hf_fields import Count, Width
from models.checkpoints.hf_settings import Settings
from models.layers.moe import MoeConfig
from models.messages import show
from models.text.settings import Qwen3Settings

__all__ = ["MoeSettings", "Qwen3MoeSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeSettings(Settings):
    """Fields of a mixture of experts in each layer."""

    num_experts: Count = 128
    num_local_experts: Count | None = None  # what transformers 5 calls num_experts
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Width = 768
    decoder_sparse_step: Literal[1] = 1
    mlp_only_layers: tuple[int, ...] | None = None

    def experts(self, *, norm_topk_prob: bool) -> MoeConfig:
        """The experts of every layer.

        Raises:
            NotImplementedError: some layers have none.
            ValueError: more experts for a token than there are.
        """
        if self.mlp_only_layers:
            raise NotImplementedError(
                f"text_config.mlp_only_layers={show(list(self.mlp_only_layers))}; supported: none"
            )
        count = self.num_local_experts or self.num_experts
        if self.num_experts_per_tok > count:
            raise ValueError(
                f"text_config.num_experts_per_tok: expected at most num_experts={count}, "
                f"got {self.num_experts_per_tok}"
            )
        return MoeConfig(
            count, self.num_experts_per_tok, self.moe_intermediate_size, norm_topk_prob
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3MoeSettings(MoeSettings, Qwen3Settings):
    """Qwen3's decoder with a mixture of experts in each layer."""

    hidden_size: Width = 2048
    intermediate_size: Width = 6144
    num_hidden_layers: Count = 24
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = None
    norm_topk_prob: bool = False
    ignored = Qwen3Settings.ignored | {"output_router_logits", "router_aux_loss_coef"}

    def switches(self) -> dict[str, Any]:
        """The switches of Qwen3, and its experts."""
        moe = self.experts(norm_topk_prob=self.norm_topk_prob)
        return super().switches() | {"moe": moe}
