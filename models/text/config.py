"""Settings of a text decoder, in Hugging Face's names: plain, frozen and hashable."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from models.layers.activations import Activation
from models.layers.moe import MoeConfig
from models.layers.rope_config import RopeConfig

__all__ = [
    "FULL_STACKS",
    "FullLayersConfig",
    "LinearAttentionConfig",
    "PerLayerInputs",
    "TextConfig",
]


@dataclasses.dataclass(frozen=True)
class LinearAttentionConfig:
    """Layers with a gated delta rule instead of attention, see `models.text.linear_attention`.

    Attributes:
        layers: their numbers, ascending. kernel: tokens of the convolution before it.
        num_key_heads, num_value_heads: heads. key_head_dim, value_head_dim: channels of a head.
    """

    layers: tuple[int, ...]
    kernel: int
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Heads of queries, of keys and of values, and channels of one of each."""
        keys = self.num_key_heads, self.key_head_dim
        return keys, keys, (self.num_value_heads, self.value_head_dim)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of all heads of queries, of keys and of values."""
        return tuple(heads * channels for heads, channels in self.heads)

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Rows [start, stop) of "q", "k" and "v" in a tensor that has one after another."""
        ends = itertools.accumulate(self.widths, initial=0)
        return dict(zip("qkv", itertools.pairwise(ends), strict=True))


FULL_STACKS = ("full_layers", "shared_full_layers")
"""Stacks of layers that see all tokens, where those with a window lie in stacks of their own."""


@dataclasses.dataclass(frozen=True)
class FullLayersConfig:
    """Layers that see all tokens, where those with a window have other heads (Gemma 4).

    Attributes:
        num_key_value_heads, head_dim: of these layers.
        keys_as_values: see `TextConfig`.
    """

    num_key_value_heads: int
    head_dim: int
    keys_as_values: bool = False


@dataclasses.dataclass(frozen=True)
class PerLayerInputs:
    """Embeddings of tokens that each layer adds by itself (Gemma 3n and 4, E2B and E4B).

    Attributes:
        vocab_size: rows of their table. width: channels for each layer.
    """

    vocab_size: int
    width: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A decoder of LLaMA's kind, with the switches in which families differ.

    Attributes:
        vocab_size: rows of the embedding. hidden_size: channels of a token.
        intermediate_size: hidden channels of a block's MLP.
        num_hidden_layers: L. num_attention_heads: N. num_key_value_heads: K. head_dim: H.
        rope: of queries and keys. sliding_rope: the same in sliding layers, where it differs.
        rope_in_full_layers: whether layers without a sliding window have it (Cohere2's do not).
        tie_word_embeddings: whether the embedding doubles as the output head.
        attention_bias: biases of the projections of queries, keys and values.
        attention_output_bias: bias of the projection behind attention.
        mlp_bias: biases of the MLP. moe: a mixture of experts in the MLP's place.
        dense_layers: numbers of the layers that have an MLP nevertheless.
        moe_beside_mlp: a mixture of experts beside the MLP, with norms of its own (Gemma 4).
        query_key_norm: an RMS norm over the channels of each head's queries and keys, before RoPE.
        layer_norms: layer norms without a bias in the RMS norms' place.
        parallel_blocks: attention and MLP read one norm, and both are added to its input (Cohere).
        offset_norms: norms multiply by 1 + weight, in float32 (Gemma 1 to 3). wide_norms: by their
            weight, in float32 (Gemma 4).
        value_norm: an RMS norm without a weight over the channels of each head's values.
        keys_as_values: values are the keys before norm and RoPE.
        full_layers_apart: heads of the layers that see all, where they are others.
        shared_layers: last layers that read the keys and values of the last layer before them of
            their kind, with a window or without. shared_intermediate_size: of their MLPs.
        per_layer_inputs: see there; None: layers get none. layer_scalars: each block's output is
            multiplied by a number of its own.
        sandwich_norms: norms behind attention and the MLP as well as before them (Gemma 2 and 3).
        sliding_window: positions that a token sees, its own the last; None: all before it.
        full_layers: numbers of the layers that see all nevertheless.
        embedding_multiplier: of token embeddings. feature_multiplier: of visual ones.
        residual_multiplier: of what a block adds.
        attention_multiplier: what scores are multiplied by; None: head_dim ** -0.5.
        llama_4_scaling_beta: makes queries longer at later positions, see
            `models.layers.rope.query_scale`; None: it does not.
        attn_logit_softcapping: of scores, see `vkq_jax.attention.soft_cap`.
            final_logit_softcapping: of logits.
        fused_projections: files hold queries, keys and values as one tensor, and the two inner
            layers of an MLP. fused_mlp: the latter alone.
        cross_layers: numbers of the layers that attend to pictures instead of tokens.
        linear: layers with linear attention instead; None: none.
        attention_gate: the projection of queries also gives a gate of each channel, whose sigmoid
            multiplies attention's output.
        extra_embeddings: rows of the embedding behind the vocabulary, which the head lacks.
        groups_cross_window: tokens of one `Inputs.attention_group` see each other beyond a sliding
            window too. groups_in_windows: in layers with a window alone.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: RopeConfig
    sliding_rope: RopeConfig | None = None
    rope_in_full_layers: bool = True
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    moe: MoeConfig | None = None
    dense_layers: tuple[int, ...] = ()
    moe_beside_mlp: MoeConfig | None = None
    query_key_norm: bool = False
    layer_norms: bool = False
    parallel_blocks: bool = False
    offset_norms: bool = False
    wide_norms: bool = False
    value_norm: bool = False
    keys_as_values: bool = False
    full_layers_apart: FullLayersConfig | None = None
    shared_layers: int = 0
    shared_intermediate_size: int | None = None
    per_layer_inputs: PerLayerInputs | None = None
    layer_scalars: bool = False
    sandwich_norms: bool = False
    hidden_act: Activation = Activation.SILU
    rms_norm_eps: float = 1e-6
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    feature_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    llama_4_scaling_beta: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    fused_projections: bool = False
    fused_mlp: bool = False
    groups_cross_window: bool = False
    groups_in_windows: bool = False
    cross_layers: tuple[int, ...] = ()
    linear: LinearAttentionConfig | None = None
    attention_gate: bool = False
    extra_embeddings: int = 0

    @property
    def stacks(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the layers of each kind, by the name of the stack that holds them.

        Those that attend to tokens come first, as `layers`.
        """
        linear = () if self.linear is None else self.linear.layers
        full = () if self.full_layers_apart is None else self.full_layers
        shared = range(self.num_own_layers, self.num_hidden_layers)
        found = {
            "cross_layers": self.cross_layers,
            "linear_layers": linear,
            "dense_layers": self.dense_layers,
            "full_layers": tuple(n for n in full if n not in shared),
            "shared_layers": tuple(n for n in shared if n not in full),
            "shared_full_layers": tuple(n for n in shared if n in full),
        }
        others = {name: layers for name, layers in found.items() if layers}
        apart = {number for layers in others.values() for number in layers}
        own = tuple(n for n in range(self.num_hidden_layers) if n not in apart)
        return {"layers": own, **others}

    def of_stack(self, name: str) -> TextConfig:
        """The settings of the blocks of one of `stacks`."""
        changes: dict[str, Any] = {}
        apart = self.full_layers_apart
        if apart is not None and name in FULL_STACKS:
            changes |= dataclasses.asdict(apart)
        if name.startswith("shared_") and self.shared_intermediate_size is not None:
            changes["intermediate_size"] = self.shared_intermediate_size
        if name == "dense_layers":
            changes["moe"] = None
        return dataclasses.replace(self, **changes)

    @property
    def num_own_layers(self) -> int:
        """Layers with keys and values of their own: the first ones."""
        return self.num_hidden_layers - self.shared_layers

    @property
    def sources(self) -> dict[str, tuple[str, int]]:
        """For each stack of shared layers the stack and the layer whose keys it reads."""
        stacks = self.stacks
        own = {name: name.removeprefix("shared_") for name in stacks if name.startswith("shared_")}
        return {name: (of, stacks[of][-1]) for name, of in own.items()}

    @property
    def logits_scale(self) -> float:
        """The factor of attention scores."""
        return (
            self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier
        )
