"""The KV cache: banks of packed visual tokens beside one bank of text, a frozen pytree.

Attention does not care about the order of cached positions once keys carry RoPE. So the visual
tokens of each prompt lie in a bank of their own, packed, and all text (system prompt, question,
generated tokens) in one bank, dense or in 8 bits, whatever their order in the conversation.
"""

from __future__ import annotations

import dataclasses

import jax

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.cache.key_bias import KeyBias, visual_reach
from vkq_jax.cache.split_tensor import SplitTensor
from vkq_jax.cache.text_bank import TextBank, TextBits
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree, static_field, take_layer
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.score_maps import ScoreMap
from vkq_jax.structure import check_structure
from vkq_jax.validation import static_layer

__all__ = ["FixedParts", "KVCache", "LayerCache"]


@frozen_pytree
class LayerCache:
    """One layer's view of a `KVCache`: all that decode attention reads.

    Attributes:
        visual: banks without the layer axis; empty where no prompt had an image.
        text: bank without the layer axis. Neither has token indices: see `visibility.Starts`.
        quant: settings the banks were made with (attention needs the calibration).
        score_map: static score calibration [N], see `KVCache`.
        tables: offline tables of the codes, see `KVCache`.
        key_bias: of the layer [K, H], see `KVCache`.
    """

    visual: tuple[VisualBank, ...]
    text: TextBank
    quant: KVQuantConfig = static_field()
    score_map: ScoreMap | None = None
    tables: CodeTables | None = None
    key_bias: KeyBias | None = None

    def decoded(self, bank: VisualBank) -> tuple[Float[Array, "B K V H"], Float[Array, "B K V H"]]:
        """Keys of one of the banks as the model made them, with their bias, and values; float32."""
        key, value = bank.dequantize(self.tables)
        if self.key_bias is not None:
            assert bank.position is not None
            key = key + self.key_bias.rotated(bank.position).transpose(0, 2, 1, 3)
        return key, value

    def check_shapes(self) -> None:
        """Raises ValueError for parts of several caches, by shapes alone."""
        batch, num_kv_heads, _, head_dim = _axes(self.text, 4)
        for number, bank in enumerate(self.visual):
            if isinstance(bank.key, SplitTensor):  # a device has parts, which stand for nothing yet
                continue
            try:
                bank.check_fits((batch, num_kv_heads, head_dim), self.tables)
            except ValueError as error:
                raise ValueError(f"visual.{number}: {error}") from error


@frozen_pytree
class FixedParts:
    """The parts of a cache that no decode step changes, see `KVCache`."""

    visual: tuple[VisualBank, ...]
    score_map: ScoreMap | None
    tables: CodeTables | None
    key_bias: KeyBias | None

    def visual_reach(self) -> int | None:
        """A bound of visual tokens' RoPE positions where a key bias asks for them, outside jit."""
        if self.key_bias is None:
            return None
        known = [bank.position for bank in self.visual if bank.position is not None]
        return visual_reach(known) if len(known) == len(self.visual) else None

    def with_waves(self, below: int | None) -> FixedParts:
        """The parts for a loop of decode steps, by a bound of positions, see `KeyBias.with_waves`.

        For inside of jit: they are made once, and no cache that is kept has them.
        """
        if self.key_bias is None:
            return self
        tokens = sum(x.position.shape[1] for x in self.visual if x.position is not None)
        bias = self.key_bias.with_waves(below, tokens)
        return dataclasses.replace(self, key_bias=bias)


@frozen_pytree
class KVCache:
    """Everything a conversation keeps between steps; every update returns a new one.

    `vkq_jax.empty_cache` makes an empty one.

    Attributes:
        visual: one bank for each prompt that had images, stacked over layers.
        text: the bank of text, stacked over layers.
        position: RoPE position of the next token of each sequence.
        calibration_skipped: how often the guard left a head's scores uncalibrated, summed
            over layers, heads and queries of each sequence.
        quant: settings for keys, values and scores.
        score_map: static score calibration [L, N], shared by all sequences; where there is one, it
            takes the place of the calibration that `quant` asks for at every step, and nothing is
            calibration_skipped.
        tables: offline tables of the model that the codes were made with [L, K, ...], shared by all
            sequences; None where the codes need none.
        key_bias: the keys' bias that the visual banks are coded without [L, K, H]; their tokens
            keep their RoPE positions then, and scores get its share. None: keys are coded whole.
    """

    visual: tuple[VisualBank, ...]
    text: TextBank
    position: Int32[Array, "B"]
    calibration_skipped: Int32[Array, "B"]
    quant: KVQuantConfig = static_field()
    score_map: ScoreMap | None = None
    tables: CodeTables | None = None
    key_bias: KeyBias | None = None

    def check_shapes(self) -> None:
        """Raises ValueError for parts of several caches, by shapes alone."""
        num_layers, batch, *_ = _axes(self.text, 5)
        for name in ("position", "calibration_skipped"):
            count = len(getattr(self, name))
            if count != batch:
                raise ValueError(f"{name}: expected {batch} sequences, got {count}")
        banks = [(bank.key, bank.value, bank.class_map) for bank in self.visual]
        for part in jax.tree.leaves((banks, self.score_map, self.tables)):
            if part.shape[:1] != (num_layers,):
                raise ValueError(f"expected parts of {num_layers} layers, got {show(part)}")
        self._layer(0).check_shapes()

    def fixed(self) -> FixedParts:
        """The parts that decoding leaves as they are."""
        return FixedParts(self.visual, self.score_map, self.tables, self.key_bias)

    def with_fixed(self, fixed: FixedParts) -> KVCache:
        """The same cache with other parts of those that decoding leaves as they are."""
        return dataclasses.replace(
            self,
            visual=fixed.visual,
            score_map=fixed.score_map,
            tables=fixed.tables,
            key_bias=fixed.key_bias,
        )

    def without_fixed(self) -> KVCache:
        """The same cache without the parts that decoding leaves as they are."""
        return self.with_fixed(FixedParts((), None, None, None))

    @property
    def parts(self) -> tuple[KVCache, ...]:
        """Caches of groups of layers: itself, see `LayeredCache`."""
        return (self,)

    @property
    def num_layers(self) -> int:
        """L, layers of the model."""
        return self.text.key.shape[0]

    @property
    def num_kv_heads(self) -> int:
        """K, KV heads of each layer."""
        return self.text.key.shape[2]

    @property
    def cache_length(self) -> int:
        """Text tokens that a sequence can hold."""
        return self.text.cache_length

    @property
    def text_bits(self) -> TextBits:
        """Bits of a text key's or value's channel; None: they are in the model's dtype."""
        return self.text.bits

    @property
    def text_length(self) -> Int32[Array, "B"]:
        """Text tokens of each sequence."""
        return self.text.length

    @property
    def visual_lengths(self) -> tuple[Int32[Array, "_"], ...]:
        """Visual tokens of each sequence in each bank; of one where it is shared."""
        return tuple(bank.length for bank in self.visual)

    @property
    def keeps_indices(self) -> bool:
        """Whether the banks know the numbers of their tokens in the sequence."""
        return self.text.index is not None

    @property
    def num_tokens(self) -> Int32[Array, "B"]:
        """Tokens of each sequence, visual and text; M-RoPE positions may run slower."""
        return sum((bank.length for bank in self.visual), self.text.length)

    def layer(self, index: Int32[Array, ""] | int) -> LayerCache:
        """The view of one layer; `index` may be traced.

        Raises:
            ValueError: parts of several caches, or the cache has no such layer.
        """
        check_structure("cache", self)
        static_layer(index, self.num_layers)
        return self._layer(index)

    def _layer(self, index: Int32[Array, ""] | int) -> LayerCache:
        text = self.text
        stored = (text.key, text.value, text.key_scale, text.value_scale)
        key, value, *scales = take_layer(stored, index)
        return LayerCache(
            tuple(bank.of_layer(index) for bank in self.visual),
            TextBank(key, value, text.length, None, *scales),
            quant=self.quant,
            score_map=take_layer(self.score_map, index),
            tables=take_layer(self.tables, index),
            key_bias=None if self.key_bias is None else self.key_bias.of_layer(index),
        )


def _axes(text: TextBank, count: int) -> tuple[int, ...]:
    """The sizes of a text bank's `count` axes; raises ValueError for another number of them."""
    if text.key.ndim != count:
        expected = "L, B, K, S, H"[-3 * count + 2 :]
        raise ValueError(f"text: expected keys and values [{expected}], got {show(text.key)}")
    return text.key.shape
