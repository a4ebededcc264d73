"""Banks in parts along the sequence, and one part of a cache as a cache of its own.

Positions of a part follow those of the part before it. Dictionary codes are split by slots: each
class of tokens has as many slots in every part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.split_tensor import SplitTensor, can_be_split, split_tensor, whole_groups
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visibility import Starts
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.token_classes import ClassMap
from vkq_jax.pytree import frozen_pytree

__all__ = [
    "TextPart",
    "join_banks",
    "part_of_cache",
    "parts_to_kernel_layout",
    "shape_of_part",
    "split_bank",
    "take_part",
]

type Number = Int32[Array, ""] | int


@frozen_pytree
class TextPart(TextBank):
    """Consecutive slots of a text bank.

    Attributes:
        key, value: of these slots. length: filled slots of the whole bank.
        first: number that the first of these slots has in the whole bank.
    """

    first: Int32[Array, ""] = dataclasses.field(kw_only=True)

    def _slots(self, valid: Bool[Array, "B T"]) -> tuple[Int32[Array, "B 1"], Int32[Array, "B T"]]:
        behind_first = TextBank(self.key, self.value, self.length - self.first)
        row, slot = behind_first._slots(valid)
        return row, jnp.where(slot < 0, self.cache_length, slot)


@frozen_pytree
class _PartMap(ClassMap):
    """A class map whose slots are those of one part.

    Attributes:
        part: number of the part. capacities: slots of each class in a part.
    """

    part: Int32[Array, "*lead"] = dataclasses.field(kw_only=True)

    def slots_of_positions(
        self, valid: Bool[Array, "*lead V"] | None = None
    ) -> Int32[Array, "*lead V"]:
        """The slot that holds each position; `num_slots` where none of this part does."""
        number = self.classes(valid)
        slot = jnp.full_like(number, self.num_slots)
        for c, (offset, capacity) in enumerate(zip(self._offsets(), self.capacities, strict=True)):
            rank = jnp.cumsum(number == c, axis=-1, dtype=jnp.int32) - 1
            rank = rank - self.part[..., None] * capacity
            own = (number == c) & (rank >= 0) & (rank < capacity)
            slot = jnp.where(own, offset + rank, slot)
        return slot

    def counts_below(
        self, position: Int32[Array, "*lead T"], valid: Bool[Array, "*lead V"] | None = None
    ) -> list[Int32[Array, "*lead T"]]:
        """How many of this part's tokens of each class lie in the first `position` positions."""
        counts = super().counts_below(position, valid)
        return [
            jnp.clip(count - self.part[..., None] * capacity, 0, capacity)
            for count, capacity in zip(counts, self.capacities, strict=True)
        ]


def split_bank(bank: VisualBank, parts: int) -> VisualBank:
    """A bank with keys and values in parts; as it is where they have none, or are in parts."""
    if isinstance(bank.key, SplitTensor):
        return bank
    key, value = bank.key.plain(), bank.value.plain()
    if not (can_be_split(key) and can_be_split(value)):
        return bank
    unit = math.lcm(whole_groups(key), whole_groups(value))
    key, value = (split_tensor(side, parts, unit) for side in (key, value))
    return dataclasses.replace(bank, key=key, value=value)


def join_banks(
    cache: KVCache, to_kernel_layout: Callable[[VisualBank], VisualBank] = lambda bank: bank
) -> KVCache:
    """The cache with those of its visual banks whole that are in parts, laid out by a function."""

    def whole(bank: VisualBank) -> VisualBank:
        if not isinstance(bank.key, SplitTensor):
            return bank
        joined = dataclasses.replace(bank, key=bank.key.plain(), value=bank.value.plain())
        return to_kernel_layout(joined)

    return dataclasses.replace(cache, visual=tuple(map(whole, cache.visual)))


def take_part(bank: VisualBank, part: Number, axis: int) -> VisualBank:
    """A bank in parts with one of them alone, the (positive) axis of parts being 1 long then."""

    def taken(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, part, 1, axis=axis)

    if not isinstance(bank.key, SplitTensor):
        return bank
    key, value = jax.tree.map(taken, (bank.key, bank.value))
    return dataclasses.replace(bank, key=key, value=value)


def parts_to_kernel_layout(
    bank: VisualBank,
    numbers: Sequence[Number],
    axis: int,
    to_kernel_layout: Callable[..., VisualBank],
) -> VisualBank:
    """The bank with each of its parts laid out for a kernel.

    Args:
        bank: in parts, of one layer or of all.
        numbers: of the parts that the bank holds, which may be some of the whole bank's.
        axis: of parts.
        to_kernel_layout: of a bank that is one part, see `pallas_kernels.to_kernel_layout`.
    """
    if not isinstance(bank.key, SplitTensor):
        return bank
    parts = [
        to_kernel_layout(_part_of_bank(take_part(bank, held, axis), number, axis))
        for held, number in enumerate(numbers)
    ]
    key, value = (
        jax.tree.map(lambda *x: jnp.stack(x, axis), *(getattr(part, side) for part in parts))
        for side in ("key", "value")
    )
    assert isinstance(bank.value, SplitTensor)
    return dataclasses.replace(
        bank,
        key=dataclasses.replace(bank.key, parts=key),
        value=dataclasses.replace(bank.value, parts=value),
    )


def part_of_cache(
    cache: KVCache,
    number: Number,
    visible_text: Int32[Array, "B T"],
    starts: Starts | None,
) -> tuple[KVCache, Int32[Array, "B T"], Starts | None]:
    """One part of a cache as a cache, and what queries see of it.

    Args:
        cache: of all layers, its banks in parts of which it holds one; whole ones belong to the
            first part.
        number: of the part.
        visible_text, starts: of the whole cache, see `vkq_jax.attention.post_scaled.attend_cache`.
    """
    banks = tuple(_part_of_bank(bank, number, axis=3) for bank in cache.visual)
    seen_from = None if starts is None else list(starts.visual)
    for i, (bank, part) in enumerate(zip(cache.visual, banks, strict=True)):
        if seen_from is not None and isinstance(bank.key, SplitTensor) and bank.class_map is None:
            first = number * bank.key.part_sizes[0]
            seen_from[i] = jnp.clip(seen_from[i] - first, 0, part.length[:, None])
    text_from = None if starts is None else starts.text
    text = cache.text
    if isinstance(text, TextPart):
        visible_text = jnp.clip(visible_text - text.first, 0, text.cache_length)
        if text_from is not None:
            text_from = jnp.clip(text_from - text.first, 0, text.cache_length)
    else:
        visible_text = jnp.where(number == 0, visible_text, 0)
    if seen_from is not None and text_from is not None:
        starts = Starts(tuple(seen_from), text_from)
    return dataclasses.replace(cache, visual=banks), visible_text, starts


def shape_of_part[C: LayerCache | KVCache](cache: C) -> C:
    """The cache with one part, abstract, of each visual bank that is in parts; of one layer or all.

    An implementation of attention that covers it covers all parts.
    """
    if not any(isinstance(bank.key, SplitTensor) for bank in cache.visual):
        return cache
    axis = cache.text.key.ndim - 2

    def first(bank: VisualBank) -> VisualBank:
        return _part_of_bank(take_part(bank, 0, axis), 0, axis)

    banks = tuple(jax.eval_shape(first, bank) for bank in cache.visual)
    return dataclasses.replace(cache, visual=banks)


def _part_of_bank(bank: VisualBank, number: Number, axis: int) -> VisualBank:
    """The only part that a bank holds, as a bank; a whole one is empty but for the first part."""
    if not isinstance(bank.key, SplitTensor) or not isinstance(bank.value, SplitTensor):
        return dataclasses.replace(bank, length=jnp.where(number == 0, bank.length, 0))
    key, value = jax.tree.map(lambda x: x.squeeze(axis), (bank.key.parts, bank.value.parts))
    sizes = bank.key.part_sizes
    if bank.class_map is not None:
        words = bank.class_map.words
        class_map = _PartMap(
            words,
            bank.class_map.valid,
            part=jnp.broadcast_to(jnp.int32(number), words.shape[:-1]),
            num_positions=bank.class_map.num_positions,
            capacities=sizes,
        )
        return dataclasses.replace(bank, key=key, value=value, class_map=class_map)
    (size,) = sizes
    first = number * size
    position = bank.position
    if position is not None:
        # Behind the last position room for a part, which a slice would be moved back without.
        padding = [(0, 0), (0, size), *[(0, 0)] * (position.ndim - 2)]
        position = jax.lax.dynamic_slice_in_dim(jnp.pad(position, padding), first, size, axis=1)
    return VisualBank(key, value, jnp.clip(bank.length - first, 0, size), position=position)
