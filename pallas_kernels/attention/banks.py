"""Banks that a launch attends to: what a kernel is built for of them, and their operands."""

from __future__ import annotations

import math

import jax.numpy as jnp

from pallas_kernels.attention import outer_dictionary, outer_rotation
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import TiledLevels, TiledSigns
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from vkq_jax.array_types import Array, Float, Int8, Int32, UInt32
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.pytree import frozen_pytree

__all__ = ["Banks", "DenseBank", "packed_classes", "packed_operands"]


@frozen_pytree
class DenseBank:
    """Dense keys and values of all layers, bfloat16; or in 8 bits, as in `TextBank`."""

    key: Float[Array, "*Z L B K S H"] | Int8[Array, "*Z L B K S H"]
    value: Float[Array, "*Z L B K S H"] | Int8[Array, "*Z L B K S H"]
    key_scale: Float[Array, "*Z L B K S"] | None = None
    value_scale: Float[Array, "*Z L B K S"] | None = None

    def operands(self, name: str) -> dict[str, Array]:
        """Arrays by operand name, that of the bank in front."""
        found = {f"{name}_{side}": _joined(getattr(self, side)) for side in ("key", "value")}
        for side in ("key_scale", "value_scale"):
            scale = getattr(self, side)
            if scale is not None:
                found[f"{name}_{side}"] = scale.reshape(-1, scale.shape[-1])
        return found


@frozen_pytree
class Banks:
    """The banks of one launch, of all layers: at most one packed (tiled), and dense ones.

    Entries are those of the packed bank's tokens in a table of a key bias, class_words those of the
    map of their classes, see `BiasShare`. Dense banks have one of `layouts.HEAD_DIMS`: padding
    others would copy them at every call.
    """

    packed: VisualBank | None
    dense: dict[str, DenseBank]
    entries: Int32[Array, "*Z B V"] | None = None
    class_words: UInt32[Array, "*Z L B K W"] | None = None


def packed_classes(bank: VisualBank) -> tuple[Packed, ...]:
    """The fixed part of a packed bank; of dictionary codes one for each class that has slots."""
    key, value = bank.key, bank.value
    if not isinstance(key, TiledDictionary):
        assert isinstance(key, TiledLevels | TiledSigns)
        assert isinstance(value, TiledLevels | TiledSigns)
        return (Packed(key.num_positions, _coding(key), _coding(value)),)
    assert isinstance(value, TiledDictionary)

    def coding(x: TiledDictionary, number: int) -> Coding:
        if outer_dictionary.folds_outside(x):
            return Coding(8, x.bits[number], codebook=x.codebook, centred=False)
        centres = max(1, x.centre.shape[-2])
        return Coding(
            8,
            x.bits[number],
            rotated=True,
            in_units=x.unit is not None,
            centres=centres,
            codebook=x.codebook,
        )

    count = len(key.capacities)
    return tuple(
        Packed(slots, coding(key, number), coding(value, number), number, of_classes=count)
        for number, slots in enumerate(key.capacities)
        if slots
    )


def _coding(x: TiledLevels | TiledSigns) -> Coding:
    if isinstance(x, TiledLevels):
        groups = x.lower.shape[-2]
        group_blocks = x.group_size // layouts.BLOCK if groups > 1 else 0
        return Coding(bits=x.bits, groups=groups, group_blocks=group_blocks)
    return Coding(
        scale_bits=4 * x.token_scale.shape[-1],
        rotated=x.rotated and not outer_rotation.rotates_outside(x),
        score_error_factor=x.score_error_factor,
    )


def packed_operands(bank: VisualBank) -> dict[str, Array]:
    """A packed bank's arrays by operand name."""
    key, value = bank.key, bank.value
    if not isinstance(key, TiledDictionary):
        operands = {"length": bank.length.reshape(-1)}
        for name, x in (("key", key), ("value", value)):
            assert isinstance(x, TiledLevels | TiledSigns)
            operands |= _tensor_operands(name, x)
        return operands
    assert isinstance(value, TiledDictionary)
    operands = {"length": key.taken.reshape(-1)}
    for name, x in (("key", key), ("value", value)):
        if not outer_dictionary.folds_outside(x):
            operands[f"{name}_centre"] = _centre_rows(x)
        if x.unit is not None:
            operands[f"{name}_unit"] = x.unit.reshape(-1, x.head_dim)
    for number, slots in enumerate(key.capacities):
        if not slots:
            continue
        own = {}
        for name, x in (("key", key), ("value", value)):
            if x.bits[number]:
                own[name] = x.packed[number].reshape(-1, x.packed[number].shape[-1])
                own[f"{name}_scale"] = _joined(x.token_scale[number])
            if x.centre_id is not None:
                own[f"{name}_id"] = _joined(x.centre_id[number])
        operands |= {f"class{number}_{name}": array for name, array in own.items()}
    return operands


def _centre_rows(x: TiledDictionary) -> Array:
    """Centres of all heads; zeros where there are none."""
    if x.centre.shape[-2]:
        return x.centre.reshape(-1, x.head_dim)
    return jnp.zeros((math.prod(x.centre.shape[:-2]), x.head_dim), x.centre.dtype)


def _joined(x: Array | None) -> Array:
    """With all axes but the last two as one."""
    assert x is not None
    return x.reshape(-1, *x.shape[-2:])


def _tensor_operands(name: str, x: TiledLevels | TiledSigns) -> dict[str, Array]:
    """The tensor's arrays by operand name, axes that the kernel does not tell apart joined."""
    arrays = {name: x.packed.reshape(-1, x.packed.shape[-1])}
    if isinstance(x, TiledLevels):
        tables = {"lower": x.lower, "upper": x.upper}
    else:
        arrays[f"{name}_scale"] = x.token_scale.reshape(-1, *x.token_scale.shape[-2:])
        tables = {"centre": x.centre}
    return arrays | {f"{name}_{key}": t.reshape(-1, t.shape[-1]) for key, t in tables.items()}
