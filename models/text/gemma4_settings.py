"""Settings of Gemma 4's text decoder in config.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from models.checkpoints.hf_fields import (
    ActivationName,
    Count,
    Factor,
    Length,
    Theta,
    TokenId,
    TokenIds,
    Width,
)
from models.checkpoints.hf_rope import rope_of
from models.checkpoints.hf_settings import Between, Settings
from models.layers.activations import Activation
from models.layers.moe import MoeConfig
from models.layers.rope_config import RopeConfig, RopeKind
from models.text.config import FullLayersConfig, PerLayerInputs
from models.text.gemma_settings import rope_by_kind
from models.text.layer_types import FULL, SLIDING, every_nth_full
from models.text.settings import TextSettings
from vkq_jax.messages import some

__all__ = ["Gemma4TextSettings"]

_WHERE = "text_config"
_PERIOD = 6  # of layers without a window, where the file does not say which they are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4TextSettings(TextSettings):
    """Two kinds of layers with heads of their own; small models share keys among layers."""

    vocab_size: Width = 262144
    hidden_size: Width = 2304
    intermediate_size: Width = 9216
    num_hidden_layers: Count = 30
    num_attention_heads: Count = 8
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    hidden_activation: ActivationName = Activation.GELU_TANH
    max_position_embeddings: Length = 131072
    mlp_bias: Literal[False] = False
    tie_word_embeddings: bool = True
    eos_token_id: TokenIds | None = 1
    pad_token_id: TokenId | None = 0
    sliding_window: Length | None = 512
    final_logit_softcapping: Factor | None = None
    use_bidirectional_attention: Literal["vision"] | None = None
    attention_k_eq_v: bool = False
    # Heads of layers without a window: of all of them, or layer by layer as transformers 5 writes.
    global_head_dim: Count | None = 512
    num_global_key_value_heads: Count | None = None
    per_layer_config: dict[str, Any] | None = None
    vocab_size_per_layer_input: Width = 262144
    hidden_size_per_layer_input: Annotated[int, Between(0, 2**16)] | None = 256
    num_kv_shared_layers: Annotated[int, Between(0, 2**12)] = 0
    use_double_wide_mlp: bool = False
    enable_moe_block: bool = False
    num_experts: Count | None = None
    top_k_experts: Count | None = None
    moe_intermediate_size: Width | None = None

    def switches(self) -> dict[str, Any]:
        """Switches of Gemma 4's blocks, and the differences between its kinds of layers.

        Raises:
            NotImplementedError: a setting that is not supported, named.
            ValueError: settings that contradict each other, named.
        """
        full = self._full_layers()
        everywhere = set(self.kinds()) == {FULL}
        own = self.hidden_size_per_layer_input
        return {
            **(dataclasses.asdict(full) if everywhere else {"full_layers_apart": full}),
            "hidden_act": self.hidden_activation,
            "wide_norms": True,
            "sandwich_norms": True,
            "query_key_norm": True,
            "value_norm": True,
            "layer_scalars": True,
            "attention_multiplier": 1.0,
            "embedding_multiplier": math.sqrt(self.hidden_size),
            "final_logit_softcapping": self.final_logit_softcapping,
            "groups_in_windows": True,
            "moe_beside_mlp": self._experts(),
            "shared_layers": self._shared_layers(),
            "shared_intermediate_size": self.intermediate_size * (1 + self.use_double_wide_mlp),
            "per_layer_inputs": PerLayerInputs(self.vocab_size_per_layer_input, own)
            if own
            else None,
        }

    def kinds(self) -> tuple[str, ...]:
        """By `layer_types`, or every sixth without a window; the last one never has a window."""
        default = every_nth_full(self.num_hidden_layers, _PERIOD)
        return (*(self.layer_types or default)[:-1], FULL)

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, RopeConfig]:
        """The frequencies of layers without a window and of those with one."""
        inside = f"{where}.rope_parameters"
        full, local = rope_by_kind(self.rope_parameters, inside)
        local = {"rope_theta": 1e4} | local
        full = full or {"rope_type": "proportional", "partial_rotary_factor": 0.25}
        full, where = {"rope_theta": 1e6} | full, f"{inside}.{FULL}"
        full_dim = self._full_layers().head_dim
        if full.get("rope_type") == RopeKind.PROPORTIONAL.value:
            wide = _Proportional.read(full, where).to_config(full_dim, self)
        else:
            wide = rope_of(full, self, full_dim, where)
        return wide, rope_of(local, self, head_dim, f"{inside}.{SLIDING}")

    def _full_layers(self) -> FullLayersConfig:
        heads, head_dim = self.num_key_value_heads, self.global_head_dim or self.head_dim
        if self.attention_k_eq_v:
            heads = self.num_global_key_value_heads or heads
        if self.per_layer_config is not None:
            own = self._layer_by_layer(self.per_layer_config)
            heads = own.num_key_value_heads or self.num_key_value_heads
            head_dim = own.head_dim or self.head_dim
        heads = heads or self.num_attention_heads
        head_dim = head_dim or self._head_dim(_WHERE)
        if self.num_attention_heads % heads:
            raise ValueError(
                f"{_WHERE}.num_global_key_value_heads: expected a divisor of num_attention_heads="
                f"{self.num_attention_heads}, got {heads}"
            )
        return FullLayersConfig(heads, head_dim, self.attention_k_eq_v)

    def _layer_by_layer(self, given: Mapping[str, Any]) -> "_LayerSizes":
        """Sizes of the layers without a window; those that it leaves out have the others' sizes."""
        where = f"{_WHERE}.per_layer_config"
        full = {str(n) for n, kind in enumerate(self.kinds()) if kind == FULL}
        # Numbers have as many digits as that of the last layer: "05" of twelve.
        given = {layer.lstrip("0") or "0": own for layer, own in given.items()}
        if set(given) - full:
            raise NotImplementedError(
                f"{where} has layers {some(sorted(set(given) - full))}; supported: those without a "
                f"window, {some(sorted(full))}"
            )
        if not all(isinstance(own, dict) for own in given.values()):
            raise ValueError(f"{where}: expected an object for each layer")
        if unread := sorted({name for own in given.values() for name in _LayerSizes.unread(own)}):
            raise NotImplementedError(f"{where} has {some(unread)}, which is not supported")
        found = {_LayerSizes.read(given.get(layer, {}), where) for layer in full}
        if len(found) > 1:
            raise NotImplementedError(f"{where}: supported: the same sizes in all of its layers")
        return found.pop()

    def _shared_layers(self) -> int:
        count, kinds = self.num_kv_shared_layers, self.kinds()
        if set(kinds[: len(kinds) - count]) != set(kinds):
            raise ValueError(
                f"{_WHERE}.num_kv_shared_layers: expected layers of each kind before the last "
                f"{count} of {len(kinds)}, whose keys those can read"
            )
        return count

    def _experts(self) -> MoeConfig | None:
        if not self.enable_moe_block:
            return None
        count, chosen, inner = self.num_experts, self.top_k_experts, self.moe_intermediate_size
        if count is None or chosen is None or inner is None or chosen > count:
            raise ValueError(
                f"{_WHERE}: expected num_experts, top_k_experts up to it and moe_intermediate_size "
                f"with enable_moe_block, got {count}, {chosen} and {inner}"
            )
        return MoeConfig(count, chosen, inner)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LayerSizes(Settings):
    """Fields of `per_layer_config` for one layer."""

    head_dim: Count | None = None
    num_key_value_heads: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Proportional(Settings):
    """RoPE that leaves the slow pairs as they are; frequencies are those of the whole head."""

    rope_theta: Theta
    partial_rotary_factor: Annotated[float, Between(0, 1)] = 1.0
    factor: Factor | None = None
    ignored = frozenset({"rope_type"})

    def to_config(self, head_dim: int, tower: TextSettings) -> RopeConfig:
        """For heads of so many channels."""
        return RopeConfig(
            head_dim=head_dim,
            max_length=tower.max_position_embeddings,
            kind=RopeKind.PROPORTIONAL,
            theta=self.rope_theta,
            factor=self.factor,
            rotated_pairs=int(self.partial_rotary_factor * head_dim // 2),
        )
