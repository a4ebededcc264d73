"""The bank of text tokens of a cache: dense, or in 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vkq_jax.array_types import Array, Bool, Float, Int8, Int32, Shaped
from vkq_jax.bits.exact_einsum import split_einsum
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree
from vkq_jax.structure import check_structure
from vkq_jax.validation import whole_number

__all__ = ["TextBank", "TextBits", "check_text_bits"]

type TextBits = Literal[8] | None

_LARGEST = 127  # of a code's magnitude


def check_text_bits(bits: object) -> TextBits:
    """The bits of text keys and values, None for the model's dtype; ValueError for others."""
    if bits is None or whole_number(bits) == 8:
        return None if bits is None else 8
    raise ValueError(f"text_bits must be 8, or None for the model's dtype, got {show(bits)}")


@frozen_pytree
class TextBank:
    """Keys (after RoPE) and values of text tokens, in the model's dtype or in 8 bits.

        key_hat[t] = key_scale[t] * key[t],    key_scale[t] = max_i |k[t, i]| / 127

    In 8 bits, keys and values are integers from -127 to 127; each token has one scale a head, in
    the model's dtype. A token with a NaN or an infinity has a scale that is not finite.

    Attributes:
        key, value: [B, K, S, H], or [L, B, K, S, H] for all layers; S is the capacity.
        length: filled positions of each sequence.
        index: as in `VisualBank`.
        key_scale, value_scale: of the 8-bit tokens; None where keys and values are dense.
    """

    key: Float[Array, "*L B K S H"] | Int8[Array, "*L B K S H"]
    value: Float[Array, "*L B K S H"] | Int8[Array, "*L B K S H"]
    length: Int32[Array, "B"]
    index: Int32[Array, "B S"] | None = None
    key_scale: Float[Array, "*L B K S"] | None = None
    value_scale: Float[Array, "*L B K S"] | None = None

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int, int],
        dtype: DTypeLike,
        *,
        bits: TextBits = None,
        keep_indices: bool = False,
    ) -> TextBank:
        """A bank [L, B, K, S, H] without tokens, of a model that computes in `dtype`."""
        _, batch, _, capacity, _ = shape
        length = jnp.zeros(batch, jnp.int32)
        index = jnp.zeros((batch, capacity), jnp.int32) if keep_indices else None
        bank = cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), length, index)
        return bank if bits is None else bank.in_8_bits()

    def check(self) -> None:
        """Checks a bank from outside.

        Raises:
            ValueError: only one of keys and values is in 8 bits, or scales do not fit them.
        """
        dtypes = {x.dtype for x in (self.key, self.value)}
        scales = [x for x in (self.key_scale, self.value_scale) if x is not None]
        coded = dtypes == {jnp.dtype(jnp.int8)}
        if len(scales) != (2 if coded else 0) or len({x.dtype for x in scales} or dtypes) != 1:
            raise ValueError(
                "expected dense keys and values of one dtype, or int8 ones with scales of one "
                f"dtype, got {self.key.dtype} and {self.value.dtype} with {len(scales)} scales"
            )
        if any((scale < 0).any() for scale in scales):
            raise ValueError("scales of text must be at least 0, got negative ones")

    @property
    def cache_length(self) -> int:
        """S, the text tokens a sequence can hold."""
        return self.key.shape[-2]

    @property
    def bits(self) -> TextBits:
        """Bits of a key's or value's channel; None where they are dense."""
        return None if self.key_scale is None else 8

    @property
    def dtype(self) -> jnp.dtype:
        """The model's dtype, in which dense keys and values are, or the scales of others."""
        return self.key.dtype if self.key_scale is None else self.key_scale.dtype

    def map_arrays(self, function: Callable[[Array], Array], **changes: Any) -> TextBank:
        """The bank with `function` of keys, values and scales, arrays [*L, B, K, S, ...].

        `changes` are of its other fields.
        """
        names = ("key", "value", "key_scale", "value_scale")
        changed = {name: jax.tree.map(function, getattr(self, name)) for name in names}
        return dataclasses.replace(self, **changed, **changes)

    def in_8_bits(self) -> TextBank:
        """The dense bank with its tokens in 8 bits."""
        assert self.bits is None
        (key, key_scale), (value, value_scale) = (
            _encode(x, self.dtype) for x in (self.key, self.value)
        )
        return dataclasses.replace(
            self, key=key, value=value, key_scale=key_scale, value_scale=value_scale
        )

    def write(
        self,
        layer: Int32[Array, ""] | int,
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        valid: Bool[Array, "B T"],
    ) -> TextBank:
        """Writes one layer's new tokens after the filled positions, leaving `length` as it is.

        Tokens that are not `valid` take no slot. Tokens without a free slot are dropped, since
        nothing can be raised under jit: `grow` first.
        """
        row, slot = (x[..., None] for x in self._slots(valid))
        head = jnp.arange(key.shape[2])

        def scatter(bank, new):
            # With the head's number, too, or XLA transposes the bank of all layers there and back.
            return bank.at[layer, row, head, slot].set(new.astype(bank.dtype), mode="drop")

        if self.key_scale is None or self.value_scale is None:
            return dataclasses.replace(
                self, key=scatter(self.key, key), value=scatter(self.value, value)
            )
        (key, key_scale), (value, value_scale) = (_encode(x, self.dtype) for x in (key, value))
        return dataclasses.replace(
            self,
            key=scatter(self.key, key),
            value=scatter(self.value, value),
            key_scale=scatter(self.key_scale, key_scale),
            value_scale=scatter(self.value_scale, value_scale),
        )

    def advance(self, valid: Bool[Array, "B T"], order: Int32[Array, "B T"]) -> TextBank:
        """Counts the valid tokens as filled, once every layer has written them.

        Their numbers in the whole sequence, `order`, are noted if the bank keeps any.
        """
        index = self.index
        if index is not None:
            index = index.at[self._slots(valid)].set(order, mode="drop")
        length = self.length + valid.sum(-1, dtype=jnp.int32)
        return dataclasses.replace(self, length=length, index=index)

    def scores(self, query: Float[Array, "B K Q H"]) -> Float[Array, "B K Q S"]:
        """query . key_hat[t] for every slot t of one layer; the query float32 and scaled."""
        scores = split_einsum("bkqh,bksh->bkqs", query, self.key)
        return scores if self.key_scale is None else scores * _rows(self.key_scale)

    def weighted_sum(self, weights: Float[Array, "B K Q S"]) -> Float[Array, "B K Q H"]:
        """sum_t weights[t] * value_hat[t] of one layer; weights float32, 0 in free slots."""
        if self.value_scale is not None:
            weights = weights * _rows(self.value_scale)
        return split_einsum("bkqs,bksh->bkqh", weights, self.value)

    def dequantize(self) -> tuple[Float[Array, "*L B K S H"], Float[Array, "*L B K S H"]]:
        """Float32 keys and values; raises ValueError for parts of several banks."""
        check_structure("text", self)
        key, value = self.key.astype(jnp.float32), self.value.astype(jnp.float32)
        if self.key_scale is None or self.value_scale is None:
            return key, value
        key_scale, value_scale = (
            x.astype(jnp.float32)[..., None] for x in (self.key_scale, self.value_scale)
        )
        return key * key_scale, value * value_scale

    def _slots(self, valid: Bool[Array, "B T"]) -> tuple[Int32[Array, "B 1"], Int32[Array, "B T"]]:
        """Sequence and slot of each new token; beyond the capacity for one that is not valid."""
        rank = jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
        slot = jnp.where(valid, self.length[:, None] + rank, self.cache_length)
        if slot.shape[1] > 1:  # or XLA fuses the sum into a scatter, and adds up for every element
            slot = jax.lax.optimization_barrier(slot)
        return jnp.arange(valid.shape[0], dtype=jnp.int32)[:, None], slot


def _encode(
    x: Float[Array, "*lead H"], dtype: DTypeLike
) -> tuple[Int8[Array, "*lead H"], Shaped[Array, "*lead"]]:
    """Codes and scales, for which codes are rounded: a scale's own rounding costs nothing."""
    x = x.astype(jnp.float32)
    scale = (jnp.abs(x).max(-1) / _LARGEST).astype(dtype)
    step = scale.astype(jnp.float32)[..., None]
    # The scale alone carries NaN and infinity; the integer that NaN becomes is undefined.
    some = (step > 0) & jnp.isfinite(step)
    code = jnp.where(some, jnp.round(x / jnp.where(some, step, 1.0)), 0.0)
    return jnp.clip(code, -_LARGEST, _LARGEST).astype(jnp.int8), scale


def _rows(scale: Float[Array, "B K S"]) -> Float[Array, "B K 1 S"]:
    return scale.astype(jnp.float32)[:, :, None]
