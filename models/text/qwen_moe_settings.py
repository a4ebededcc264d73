"""Experts of Qwen3's text decoders in config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from models.checkpoints.hf_fields import NO_EFFECT_OF_ROUTERS, Count, Width
from models.checkpoints.hf_settings import Settings
from models.layers.moe import MoeConfig
from models.text.layer_types import FULL, SLIDING
from models.text.settings import Qwen3Settings

__all__ = ["MoeSettings", "Qwen3MoeSettings", "check_experts_per_token"]


def check_experts_per_token(chosen: int, count: int) -> None:
    """Raises ValueError for more experts of a token than there are."""
    if chosen > count:
        raise ValueError(
            f"text_config.num_experts_per_tok: expected at most num_experts={count}, got {chosen}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeSettings(Settings):
    """Fields of a mixture of experts in each layer, or in some of them."""

    num_experts: Count = 128
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Width = 768
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[int, ...] | None = None
    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    def experts(self, num_layers: int, *, norm_topk_prob: bool) -> dict[str, Any]:
        """Fields of `TextConfig`: the experts, and the layers without.

        Every `decoder_sparse_step`-th layer has experts, unless `mlp_only_layers` names it.

        Raises:
            ValueError: more experts for a token than there are.
        """
        check_experts_per_token(self.num_experts_per_tok, self.num_experts)
        moe = MoeConfig(
            self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size, norm_topk_prob
        )
        plain = self.mlp_only_layers or ()
        dense = tuple(
            n for n in range(num_layers) if n in plain or (n + 1) % self.decoder_sparse_step
        )
        if len(dense) == num_layers:
            return {}
        return {"moe": moe, "dense_layers": dense}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3MoeSettings(MoeSettings, Qwen3Settings):
    """Qwen3's decoder with mixtures of experts."""

    hidden_size: Width = 2048
    intermediate_size: Width = 6144
    num_hidden_layers: Count = 24
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = None
    norm_topk_prob: bool = False
    layer_types: None = None
    ignored = Qwen3Settings.ignored | NO_EFFECT_OF_ROUTERS

    def switches(self) -> dict[str, Any]:
        """The switches of Qwen3, and its experts."""
        experts = self.experts(self.num_hidden_layers, norm_topk_prob=self.norm_topk_prob)
        return super().switches() | experts

    def kinds(self) -> tuple[str, ...]:
        """All layers have a window, or none: unlike Qwen3, this looks at no `max_window_layers`."""
        sliding = self.use_sliding_window and self.sliding_window is not None
        return (SLIDING if sliding else FULL,) * self.num_hidden_layers
