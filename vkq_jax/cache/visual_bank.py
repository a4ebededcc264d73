"""Bank of visual tokens: keys and values as they are coded, and the order in which they lie."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.bits import packing
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.dictionary_encoder import encode_pair
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.quantize import dequantize, quantize
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.codes.token_classes import ClassMap
from vkq_jax.messages import shorten, show
from vkq_jax.pytree import frozen_pytree, take_layer
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.slots import filled, visible
from vkq_jax.structure import check_structure

__all__ = ["VisualBank", "code_bank", "quantize_visual"]


@frozen_pytree
class VisualBank:
    """Keys (after RoPE) and values of the visual tokens that one prompt brought.

    A bank of one sequence in a cache of several is shared by all of them, see `share_visual`.

    Attributes:
        key, value: logical shape [B, K, V, H], or [L, B, K, V, H] for all layers.
        length: visual tokens of each sequence; positions from there on are padding.
        index: number of each token in its whole sequence, for all layers; None: not kept, see
            `empty_cache`.
        class_map: of dictionary codes, which class each token of a head belongs to: the order in
            which both tensors hold their tokens. None: they hold them as they came.
        position: RoPE position of each token, for all layers; None: not kept, see
            `KVCache.key_bias`.
    """

    key: QuantizedTensor
    value: QuantizedTensor
    length: Int32[Array, "B"]
    index: Int32[Array, "B V"] | None = None
    class_map: ClassMap | None = None
    position: Int32[Array, "B V *axes"] | None = None

    def check_fits(
        self, sizes: tuple[int, int, int], tables: CodeTables | None = None
    ) -> jax.ShapeDtypeStruct:
        """Checks one layer's bank by shapes alone.

        Args:
            sizes: B, K and H of the cache.
            tables: of the layer.

        Returns:
            Shape and dtype of the keys that the codes stand for.

        Raises:
            ValueError: parts that do not fit together, or are of another cache.
        """
        batch, num_kv_heads, head_dim = sizes
        try:
            key, value = jax.eval_shape(VisualBank.dequantize, self, tables)
        except (AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
            parts = f"keys {_described(self.key)}; values {_described(self.value)}"
            raise ValueError(f"the parts do not fit together: {parts}") from error
        length = self.length.shape[0]
        expected = (length, num_kv_heads, key.shape[-2], head_dim)
        if length not in (1, batch) or not key.shape == value.shape == expected:
            raise ValueError(
                f"must have the axes {[batch, num_kv_heads, '*', head_dim]} of the text in each "
                f"layer, got keys {list(key.shape)} and values {list(value.shape)} of {length} "
                "sequences"
            )
        return key

    def of_layer(self, index: Int32[Array, ""] | int) -> VisualBank:
        """One layer of a bank of all layers, without token indices; `index` may be traced."""
        check_structure("bank", self)
        key, value, class_map = take_layer((self.key, self.value, self.class_map), index)
        return VisualBank(key, value, self.length, position=self.position, class_map=class_map)

    def visible(
        self, start: Int32[Array, "B T"] | None, stop: Int32[Array, "B 1"], capacity: int
    ) -> Bool[Array, "B k T S"]:
        """Which slots of one layer hold a token of positions [start, stop).

        Args:
            start: the first position that each query sees; None: the first of all.
            stop: one past the last.
            capacity: slots of the bank.
        """
        if self.class_map is None:
            return visible(start, stop, capacity)[:, None]
        seen = self.class_map.slots_below(*self._per_head(stop))
        if start is None:
            return seen
        return seen & ~self.class_map.slots_below(*self._per_head(start))

    def counts_below(self, position: Int32[Array, "B T"]) -> list[Int32[Array, "*L B K T"]]:
        """How many of the first `position` tokens are in each class of the map."""
        assert self.class_map is not None
        return self.class_map.counts_below(*self._per_head(position))

    def _per_head(
        self, position: Int32[Array, "B T"]
    ) -> tuple[Int32[Array, "*L B K T"], Bool[Array, "*L B K V"]]:
        """The positions, and which ones hold tokens, for each head of the class map."""
        assert self.class_map is not None
        heads, num_positions = self.class_map.words.shape[:-1], self.class_map.num_positions
        valid = filled(jnp.broadcast_to(self.length[:, None], heads), num_positions)
        return jnp.broadcast_to(position[:, None], (*heads, position.shape[-1])), valid

    def in_slots(self, scores: Float[Array, "B K Q V"]) -> Float[Array, "B K Q S"]:
        """Scores of one layer's tokens as they came, in the order of its slots; 0 in free ones."""
        if self.class_map is None:
            return scores
        # Numbers are put in their places, not scores: those of all queries are gathered by them.
        count = scores.shape[-1]
        numbers = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (len(scores), count))
        taken = self.tokens_in_slots(numbers, count)
        taken = jnp.broadcast_to(taken[:, :, None], (*scores.shape[:-1], taken.shape[-1]))
        return jnp.take_along_axis(scores, taken, axis=-1, mode="fill", fill_value=0)

    def tokens_in_slots(self, x: Int32[Array, "B V"], absent: int = 0) -> Int32[Array, "B k S"]:
        """A number of each token, in the order of one layer's slots; `absent` in free ones.

        k is 1 where all heads have their tokens as they came, else K.
        """
        if self.class_map is None:
            return x[:, None]
        _, valid = self._per_head(self.length[:, None])
        capacity = self.class_map.num_slots
        slot = jnp.where(valid, self.class_map.slots_of_positions(valid), capacity)
        numbers = jnp.broadcast_to(x[:, None], slot.shape)
        none = jnp.full((*slot.shape[:-1], capacity), absent, jnp.int32)
        return jnp.put_along_axis(none, slot, numbers, axis=-1, inplace=False, mode="drop")

    def in_positions(self, x: Float[Array, "B K Q S"], absent: float) -> Float[Array, "B K Q V"]:
        """Numbers of one layer's slots, in the order in which the tokens came.

        `absent` stands after the last token of a sequence. The inverse of `in_slots`.
        """
        if self.class_map is None:
            valid = filled(self.length, x.shape[-1])[:, None]
        else:
            _, valid = self._per_head(self.length[:, None])
            slot = self.class_map.slots_of_positions(valid)[:, :, None]
            shape = (*x.shape[:-1], slot.shape[-1])
            x = jnp.take_along_axis(x, jnp.broadcast_to(slot, shape), axis=-1)
        return jnp.where(valid[:, :, None], x, jnp.asarray(absent, x.dtype))

    def dequantize(
        self, tables: CodeTables | None = None
    ) -> tuple[Float[Array, "*L B K V H"], Float[Array, "*L B K V H"]]:
        """Float32 keys and values in the order in which the tokens came.

        Raises:
            ValueError: parts of several banks.
        """
        check_structure("bank", self)
        if self.class_map is None:
            return dequantize(self.key), dequantize(self.value)
        key, value = self.key.plain(), self.value.plain()
        assert isinstance(key, DictionaryTensor)
        assert isinstance(value, DictionaryTensor)
        _, valid = self._per_head(self.length[:, None])
        class_map = dataclasses.replace(self.class_map, valid=packing.pack(valid, 1))
        key_tables, value_tables = (None, None) if tables is None else (tables.key, tables.value)
        return (
            key.dequantize(key_tables, class_map),
            value.dequantize(value_tables, class_map),
        )


def _described(tensor: QuantizedTensor) -> str:
    """Its arrays by dtype and shape, and its settings."""
    parts = {field.name: getattr(tensor, field.name) for field in dataclasses.fields(tensor)}  # type: ignore[arg-type]
    text = ", ".join(f"{name} {show(part)}" for name, part in parts.items() if part is not None)
    return shorten(text, 140)


def code_bank(
    key: Float[Array, "B K V H"],
    value: Float[Array, "B K V H"],
    valid: Bool[Array, "B V"],
    quant: KVQuantConfig,
    tables: CodeTables | None = None,
    attention: Float[Array, "B K V"] | None = None,
) -> VisualBank:
    """Codes one layer's visual tokens; `valid` holds from the first position on.

    `attention` is what tokens got so far, see `KVQuantConfig.needs_attention`.
    """
    per_head = jnp.broadcast_to(valid[:, None], key.shape[:-1])
    length = valid.sum(-1, dtype=jnp.int32)
    if not quant.needs_attention:
        attention = None
    if isinstance(quant.key, DictionaryCodes) and isinstance(quant.value, DictionaryCodes):
        coded_key, coded_value, class_map = encode_pair(
            key, value, per_head, (quant.key, quant.value), tables, attention
        )
        return VisualBank(coded_key, coded_value, length, class_map=class_map)
    coded_key = quantize(key, quant.key, valid=per_head)
    if isinstance(coded_key, DenseTensor):
        coded_key = dataclasses.replace(coded_key, attention=attention)
    return VisualBank(coded_key, quantize(value, quant.value, valid=per_head), length)


def quantize_visual(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    quant: KVQuantConfig,
    tables: CodeTables | None = None,
    attention: Float[Array, "B K V"] | None = None,
) -> VisualBank:
    """Gathers one layer's visual positions (see `visual.left_pack`) and codes them.

    `tables` are those of the layer; `attention` as for `code_bank`, of the gathered positions.
    """

    def gather(x):
        positions = jnp.take_along_axis(x, index[:, :, None, None], axis=1)
        return positions.transpose(0, 2, 1, 3)  # [B, K, V, H]

    return code_bank(gather(key), gather(value), valid, quant, tables, attention)
