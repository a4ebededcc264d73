"""The KV cache: banks of packed visual tokens beside one dense bank of text, a frozen pytree.

Attention does not care about the order of cached positions once keys carry RoPE. So the visual
tokens of each prompt lie in a bank of their own, packed, and all text (system prompt, question,
generated tokens) in one dense bank, whatever their order in the conversation.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.calibration import ScoreMap
from vkq_jax.config import KVQuantConfig
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.quantize import quantize
from vkq_jax.quantized import QuantizedTensor

__all__ = ["KVCache", "LayerCache", "TextBank", "VisualBank", "quantize_visual", "take_layer"]


@frozen_pytree
class VisualBank:
    """Keys (after RoPE) and values of the visual tokens that one prompt brought.

    Attributes:
        key, value: logical shape [B, K, V, H], or [L, B, K, V, H] for all layers.
        length: visual tokens of each sequence; positions from there on are padding.
        position: RoPE position of each token, for all layers; None: not kept, see `KVCache.init`.
    """

    key: QuantizedTensor
    value: QuantizedTensor
    length: Int32[Array, "B"]
    position: Int32[Array, "B V"] | None = None


@frozen_pytree
class TextBank:
    """Dense keys (after RoPE) and values of text tokens, in the model's dtype.

    Attributes:
        key, value: [B, K, S, H], or [L, B, K, S, H] for all layers; S is the capacity.
        length: filled positions of each sequence.
        position: as in `VisualBank`.
    """

    key: Float[Array, "*L B K S H"]
    value: Float[Array, "*L B K S H"]
    length: Int32[Array, "B"]
    position: Int32[Array, "B S"] | None = None

    @property
    def cache_length(self) -> int:
        """S, the text tokens a sequence can hold."""
        return self.key.shape[-2]

    def write(
        self,
        layer: Int32[Array, ""] | int,
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        valid: Bool[Array, "B T"],
    ) -> TextBank:
        """Writes one layer's new tokens behind the filled positions, leaving `length` as it is.

        Tokens that are not `valid` take no slot. What does not fit is dropped, as it must be under
        jit: `grow` first.
        """
        row, slot = self._slots(valid)

        def scatter(bank, new):
            return bank.at[layer, row, :, slot].set(new.astype(bank.dtype), mode="drop")

        return dataclasses.replace(
            self, key=scatter(self.key, key), value=scatter(self.value, value)
        )

    def advance(self, valid: Bool[Array, "B T"], positions: Int32[Array, "B T"]) -> TextBank:
        """Counts the valid tokens as filled, once every layer has written them.

        Their RoPE positions are noted if the bank keeps any.
        """
        position = self.position
        if position is not None:
            position = position.at[self._slots(valid)].set(positions, mode="drop")
        length = self.length + valid.sum(-1, dtype=jnp.int32)
        return dataclasses.replace(self, length=length, position=position)

    def _slots(self, valid: Bool[Array, "B T"]) -> tuple[Int32[Array, "B 1"], Int32[Array, "B T"]]:
        """Sequence and slot of each new token; behind the capacity for one that is not valid."""
        rank = jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
        slot = jnp.where(valid, self.length[:, None] + rank, self.cache_length)
        return jnp.arange(valid.shape[0], dtype=jnp.int32)[:, None], slot


@frozen_pytree
class LayerCache:
    """One layer's view of a `KVCache`: all that decode attention reads.

    Attributes:
        visual: banks without the layer axis; empty where no prompt had an image.
        text: bank without the layer axis. Neither has positions: see `visibility.Starts`.
        quant: settings the banks were made with (attention needs the calibration).
        score_map: static score calibration [N], see `KVCache`.
    """

    visual: tuple[VisualBank, ...]
    text: TextBank
    quant: KVQuantConfig = static_field()
    score_map: ScoreMap | None = None


@frozen_pytree
class KVCache:
    """Everything a conversation keeps between steps; every update returns a new one.

    Attributes:
        visual: one bank for each prompt that had images, stacked over layers.
        text: the dense bank, stacked over layers.
        position: RoPE position of the next token of each sequence.
        guarded: how often the guard of score calibration left a head's scores as they were, summed
            over layers, heads and queries of each sequence.
        quant: settings for keys, values and scores.
        score_map: static score calibration [L, N], shared by all sequences; where there is one, it
            takes the place of the calibration that `quant` asks for at every step, and nothing is
            guarded.
    """

    visual: tuple[VisualBank, ...]
    text: TextBank
    position: Int32[Array, "B"]
    guarded: Int32[Array, "B"]
    quant: KVQuantConfig = static_field()
    score_map: ScoreMap | None = None

    @classmethod
    def init(
        cls,
        *,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        cache_length: int,
        quant: KVQuantConfig,
        dtype: DTypeLike = jnp.bfloat16,
        keep_positions: bool = False,
    ) -> KVCache:
        """An empty cache with room for `cache_length` text tokens a sequence.

        One that keeps the RoPE positions of its tokens, 4 bytes each, fits a sliding window.
        """
        for name, size in (("batch", batch), ("cache_length", cache_length)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        shape = (num_layers, batch, num_kv_heads, cache_length, head_dim)
        none = jnp.zeros(batch, jnp.int32)
        position = jnp.zeros((batch, cache_length), jnp.int32) if keep_positions else None
        text = TextBank(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), none, position)
        return cls((), text, position=none, guarded=none, quant=quant)

    @property
    def keeps_positions(self) -> bool:
        """Whether the banks know the RoPE positions of their tokens."""
        return self.text.position is not None

    def layer(self, index: Int32[Array, ""] | int) -> LayerCache:
        """The view of one layer; `index` may be traced."""
        return LayerCache(
            tuple(
                VisualBank(*take_layer((bank.key, bank.value), index), bank.length)
                for bank in self.visual
            ),
            TextBank(*take_layer((self.text.key, self.text.value), index), self.text.length),
            quant=self.quant,
            score_map=take_layer(self.score_map, index),
        )


def quantize_visual(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    quant: KVQuantConfig,
) -> VisualBank:
    """Gathers one layer's visual positions (see `visual.compact`) and codes them."""

    def gather(x):
        positions = jnp.take_along_axis(x, index[:, :, None, None], axis=1)
        return positions.transpose(0, 2, 1, 3)  # [B, K, V, H]

    per_head = jnp.broadcast_to(valid[:, None], (key.shape[0], key.shape[2], index.shape[1]))
    return VisualBank(
        quantize(gather(key), quant.key, valid=per_head),
        quantize(gather(value), quant.value, valid=per_head),
        valid.sum(-1, dtype=jnp.int32),
    )


def take_layer[T](stacked: T, index: Int32[Array, ""] | int) -> T:
    """One layer of a pytree of arrays [L, ...]; `index` may be traced."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=0, keepdims=False), stacked
    )
