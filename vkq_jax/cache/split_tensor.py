"""Coded tensors in parts along the sequence, each part a coded tensor of its own.

Devices that share a KV head hold a part each and attend to it alone; the results are merged by
their log-sum-exp. The codes are those of the whole tensor: tables that all positions share are in
every part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Int32, Shaped
from vkq_jax.bits import packing
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.level_codes import Granularity, LevelTensor
from vkq_jax.codes.mixed_codes import MixedTensor
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor
from vkq_jax.codes.sign_codes import SignTensor
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["SplitTensor", "can_be_split", "split_tensor", "whole_groups"]


@frozen_pytree
class SplitTensor(QuantizedTensor):
    """A tensor [*lead, V, H] as P parts of consecutive positions, or of slots of each class.

    Attributes:
        parts: the parts as one tensor [*lead, P, V / P, H]; positions after the last one are
            padding.
        sizes: V; of dictionary codes, the slots of each class.
        part_sizes: the sizes of one part.
        group_size: positions of a group of the whole tensor; None where it has no groups.
    """

    parts: QuantizedTensor
    sizes: tuple[int, ...] = static_field(kw_only=True)
    part_sizes: tuple[int, ...] = static_field(kw_only=True)
    group_size: int | None = static_field(kw_only=True)

    def plain(self) -> QuantizedTensor:
        """The tensor that was split, as its quantizer made it."""
        return _joined(self.parts.plain(), self.sizes, self.group_size)

    def decoding(self) -> AffineTensor:
        """How the tensor that was split is decoded."""
        return self.plain().decoding()

    def dequantize(self) -> Float[Array, "*lead V H"]:
        """The float32 values of the tensor that was split."""
        return self.plain().dequantize()

    def num_elements(self) -> int:
        """Elements of the tensor that was split."""
        return jax.eval_shape(SplitTensor.plain, self).num_elements()


def can_be_split(x: QuantizedTensor) -> bool:
    """Whether a tensor, as its quantizer made it, has parts: one of this package, with tokens."""
    known = DenseTensor | AffineTensor | LevelTensor | SignTensor | MixedTensor | DictionaryTensor
    return isinstance(x, known) and any(_sizes(x))


def whole_groups(x: QuantizedTensor) -> int:
    """Each part has a multiple of this many positions: a group, where there are several groups."""
    if isinstance(x, MixedTensor):
        return math.lcm(whole_groups(x.wide), whole_groups(x.narrow))
    if isinstance(x, DictionaryTensor):
        return 1
    _, by_group = _fields(x)
    (size,) = _sizes(x)
    return x.group_size if by_group and x.group_size < size else 1  # type: ignore[attr-defined]


def split_tensor(x: QuantizedTensor, parts: int, unit: int) -> SplitTensor:
    """A tensor, as its quantizer made it, in parts of equal sizes; the last ones may be empty.

    Args:
        x: for which `can_be_split` holds.
        parts: their number, P.
        unit: of positions, a multiple of `whole_groups`; each part has a multiple of it. Classes of
            dictionary codes have no groups.
    """
    split = _split(x, parts, unit)
    group_size = getattr(x, "group_size", None)
    return SplitTensor(split, sizes=_sizes(x), part_sizes=_sizes(split), group_size=group_size)


def _sizes(x: QuantizedTensor) -> tuple[int, ...]:
    match x:
        case DictionaryTensor():
            return tuple(words.shape[-2] for words in x.packed)
        case MixedTensor():
            return _sizes(x.wide)
        case DenseTensor():
            return (x.values.shape[-2],)
    assert isinstance(x, AffineTensor | LevelTensor | SignTensor)
    return (x.packed.shape[-2],)


def _split(x: QuantizedTensor, parts: int, unit: int) -> QuantizedTensor:
    if isinstance(x, DictionaryTensor):
        return _split_classes(x, parts)
    if isinstance(x, MixedTensor):
        wide, narrow = (_split_positions(side, parts, unit) for side in (x.wide, x.narrow))
        return MixedTensor(wide, narrow, _repeated(x.channel, parts, -1))
    return _split_positions(x, parts, unit)


def _fields(x: QuantizedTensor) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """Fields with one row per position, with their axis of positions; those with one per group."""
    match x:
        case DenseTensor():
            return {"values": -2, "attention": -1}, ()
        case SignTensor():
            return {"packed": -2, "token_scale": -1}, ("centre",)
        case LevelTensor(granularity=Granularity.PER_CHANNEL):
            return {"packed": -2}, ("lower", "upper")
        case LevelTensor():
            return {"packed": -2, "lower": -2, "upper": -2}, ()
    assert isinstance(x, AffineTensor)
    by_position = {"packed": -2, "token_offset": -2, "token_scale": -2, "score_error": -1}
    return by_position, ("channel_offset", "channel_scale")


def _split_positions[T: QuantizedTensor](x: T, parts: int, unit: int) -> T:
    by_position, by_group = _fields(x)
    (size,) = _sizes(x)
    part_size = unit * -(-size // (unit * parts))
    new: dict[str, Any] = {}
    for name, axis in by_position.items():
        if (table := getattr(x, name)) is not None:
            new[name] = _cut(table, parts, part_size, axis)
    for name in by_group:
        if (table := getattr(x, name)) is None:
            continue
        if table.shape[-2] == 1:
            new[name] = _repeated(table, parts, -2)
        else:
            new[name] = _cut(table, parts, part_size // x.group_size, -2)  # type: ignore[attr-defined]
    return dataclasses.replace(x, **new)  # type: ignore[type-var]


def _split_classes(x: DictionaryTensor, parts: int) -> DictionaryTensor:
    sizes = _sizes(x)
    part_sizes = [-(-size // parts) for size in sizes]
    ids = None
    if x.centre_id is not None:
        numbers = packing.unpack(x.centre_id, x.id_bits, x.num_slots)
        ids = [
            _cut(of_class, parts, part_size, -1)
            for of_class, part_size in zip(_by_class(numbers, sizes), part_sizes, strict=True)
        ]
    return dataclasses.replace(
        x,
        packed=tuple(_cut(w, parts, n, -2) for w, n in zip(x.packed, part_sizes, strict=True)),
        token_scale=tuple(
            None if scale is None else _cut(scale, parts, n, -1)
            for scale, n in zip(x.token_scale, part_sizes, strict=True)
        ),
        centre=_repeated(x.centre, parts, -2),
        unit=None if x.unit is None else _repeated(x.unit, parts, -1),
        centre_id=None if ids is None else packing.pack(jnp.concatenate(ids, -1), x.id_bits),
        num_slots=sum(part_sizes),
    )


def _joined(x: QuantizedTensor, sizes: tuple[int, ...], group_size: int | None) -> QuantizedTensor:
    """The inverse of `_split`."""
    if isinstance(x, DictionaryTensor):
        return _joined_classes(x, sizes)
    if isinstance(x, MixedTensor):
        wide, narrow = (_joined(side, sizes, side.group_size) for side in (x.wide, x.narrow))
        assert isinstance(wide, LevelTensor)
        assert isinstance(narrow, LevelTensor)
        return MixedTensor(wide, narrow, x.channel[..., 0, :])
    by_position, by_group = _fields(x)
    (size,) = sizes
    new: dict[str, Any] = {} if group_size is None else {"group_size": group_size}
    for name, axis in by_position.items():
        if (table := getattr(x, name)) is not None:
            new[name] = _glue(table, size, axis)
    for name in by_group:
        if (table := getattr(x, name)) is None:
            continue
        assert group_size is not None
        one = group_size >= size
        new[name] = table[..., 0, :, :] if one else _glue(table, -(-size // group_size), -2)
    return dataclasses.replace(x, **new)  # type: ignore[type-var]


def _joined_classes(x: DictionaryTensor, sizes: tuple[int, ...]) -> DictionaryTensor:
    ids = None
    if x.centre_id is not None:
        numbers = packing.unpack(x.centre_id, x.id_bits, x.num_slots)
        of_classes = zip(_by_class(numbers, _sizes(x)), sizes, strict=True)
        ids = jnp.concatenate([_glue(of_class, size, -1) for of_class, size in of_classes], -1)
    return dataclasses.replace(
        x,
        packed=tuple(_glue(w, size, -2) for w, size in zip(x.packed, sizes, strict=True)),
        token_scale=tuple(
            None if scale is None else _glue(scale, size, -1)
            for scale, size in zip(x.token_scale, sizes, strict=True)
        ),
        centre=x.centre[..., 0, :, :],
        unit=None if x.unit is None else x.unit[..., 0, :],
        centre_id=None if ids is None else packing.pack(ids, x.id_bits),
        num_slots=sum(sizes),
    )


def _by_class(x: Int32[Array, "*lead S"], sizes: tuple[int, ...]) -> list[Int32[Array, "*lead _"]]:
    stops = [sum(sizes[: c + 1]) for c in range(len(sizes) - 1)]
    return jnp.split(x, stops, axis=-1)


def _cut(x: Shaped[Array, "..."], parts: int, size: int, axis: int) -> Shaped[Array, "..."]:
    """Splits the (negative) axis into parts of a size, the last ones filled up with zeros."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, parts * size - x.shape[axis])
    at = x.ndim + axis
    return jnp.pad(x, padding).reshape(*x.shape[:at], parts, size, *x.shape[at + 1 :])


def _glue(x: Shaped[Array, "..."], size: int, axis: int) -> Shaped[Array, "..."]:
    """The inverse of `_cut`."""
    at = x.ndim + axis
    whole = x.reshape(*x.shape[: at - 1], x.shape[at - 1] * x.shape[at], *x.shape[at + 1 :])
    return jax.lax.slice_in_dim(whole, 0, size, axis=at - 1)


def _repeated(x: Shaped[Array, "..."], parts: int, axis: int) -> Shaped[Array, "..."]:
    """The table in each part: a new axis before the (negative) one."""
    at = x.ndim + axis
    wide = jnp.expand_dims(x, at)
    return jnp.broadcast_to(wide, (*x.shape[:at], parts, *x.shape[at:]))
