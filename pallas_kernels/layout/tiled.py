"""Coded tensors whose words lie in the kernel's layout; everything else about them is as before.

A tiled tensor is itself a `QuantizedTensor`: its `decoding()` is that of the tensor it was made
from, so the oracle, the XLA path, byte counts and saving work on it unchanged. Where H is not
itself stored (`layouts.stored_head_dim`), words and tables have the S channels that are, so that no
call has to pad them.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import Side
from pallas_kernels.layout.tiled_dictionary import (
    TiledDictionary,
    tile_pair,
    untileable_pair_reason,
)
from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Float, UInt32
from vkq_jax.bits import packing
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.level_codes import Granularity, LevelTensor
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor
from vkq_jax.codes.sign_codes import SignTensor
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = [
    "Side",
    "TiledLevels",
    "TiledSigns",
    "tile",
    "tile_tensor",
    "untileable_bank_reason",
    "untileable_reason",
]

_BITS = (1, 2, 4)


@frozen_pytree
class TiledLevels(QuantizedTensor):
    """A `LevelTensor` per channel, its words as `pallas_kernels.layout.layouts` says.

    Attributes:
        packed: words in the layout of keys or of values; code planes of the lowest bit, then of the
            next ones.
        lower, upper: as in `LevelTensor`, 0 for channels that are only stored.
        side: which of the two layouts.
        num_positions: V, without the padding of the last block.
        head_dim: H, without the padding to S.
        group_size: positions that share a pair of levels.
        bits: of a code.
    """

    packed: UInt32[Array, "*lead n"]
    lower: Float[Array, "*lead G S"]
    upper: Float[Array, "*lead G S"]
    side: Side = static_field(kw_only=True)
    num_positions: int = static_field(kw_only=True)
    head_dim: int = static_field(kw_only=True)
    group_size: int = static_field(kw_only=True)
    bits: int = static_field(kw_only=True, default=1)

    def plain(self) -> LevelTensor:
        """The tensor it was made from."""
        return LevelTensor(
            packed=_untile_words(self, self.bits),
            lower=self.lower[..., : self.head_dim],
            upper=self.upper[..., : self.head_dim],
            bits=self.bits,
            head_dim=self.head_dim,
            group_size=self.group_size,
            granularity=Granularity.PER_CHANNEL,
        )

    def decoding(self) -> AffineTensor:
        """That of the tensor it was made from."""
        return self.plain().decoding()


@frozen_pytree
class TiledSigns(QuantizedTensor):
    """A `SignTensor` with one centre, its words and scales as `pallas_kernels.layout.layouts` says.

    Attributes:
        packed: words in the layout of keys or of values.
        centre: as in `SignTensor`, one group; 0 for channels that are only stored.
        token_scale: words of four 8-bit or two bfloat16 scales.
        side: which of the two layouts.
        num_positions: V, without the padding of the last block.
        head_dim: H, without the padding to S.
        rotated, score_error_factor: as in `SignTensor`.
    """

    packed: UInt32[Array, "*lead n"]
    centre: Float[Array, "*lead 1 S"]
    token_scale: UInt32[Array, "*lead blocks 32 words"]
    side: Side = static_field(kw_only=True)
    num_positions: int = static_field(kw_only=True)
    head_dim: int = static_field(kw_only=True)
    rotated: bool = static_field(kw_only=True)
    score_error_factor: float = static_field(kw_only=True)

    def plain(self) -> SignTensor:
        """The tensor it was made from."""
        return SignTensor(
            packed=_untile_words(self, bits=1),
            centre=self.centre[..., : self.head_dim],
            token_scale=layouts.untile_scales(self.token_scale, self.num_positions),
            head_dim=self.head_dim,
            group_size=max(1, self.num_positions),
            rotated=self.rotated,
            score_error_factor=self.score_error_factor,
        )

    def decoding(self) -> AffineTensor:
        """That of the tensor it was made from."""
        return self.plain().decoding()


@checked
def tile(bank: VisualBank) -> VisualBank:
    """The bank in the kernel's layout, at the end of a layer's prefill; any leading axes.

    A bank that the kernel does not cover (see `untileable_bank_reason`) is returned as it is.
    """
    if untileable_bank_reason(bank):
        return bank
    if isinstance(bank.key, DictionaryTensor):
        return tile_pair(bank)
    if isinstance(bank.key, TiledDictionary):
        return bank
    key, value = tile_tensor(bank.key, "key"), tile_tensor(bank.value, "value")
    return dataclasses.replace(bank, key=key, value=value)


def tile_tensor(x: QuantizedTensor, side: Side) -> TiledLevels | TiledSigns:
    """One tensor in the kernel's layout.

    Raises:
        NotImplementedError: the kernel does not cover it, see `untileable_reason`.
    """
    if isinstance(x, TiledLevels | TiledSigns):
        return x
    reason = untileable_reason(x)
    if reason:
        raise NotImplementedError(reason)
    assert isinstance(x, LevelTensor | SignTensor)
    bits = int(x.bits) if isinstance(x, LevelTensor) else 1
    words = _tile_words(x.packed, bits, x.head_dim, side)
    num_positions = x.packed.shape[-2]
    if isinstance(x, LevelTensor):
        return TiledLevels(
            words,
            layouts.pad_channels(x.lower),
            layouts.pad_channels(x.upper),
            side=side,
            num_positions=num_positions,
            head_dim=x.head_dim,
            group_size=x.group_size,
            bits=bits,
        )
    return TiledSigns(
        words,
        layouts.pad_channels(x.centre),
        layouts.tile_scales(x.token_scale),
        side=side,
        num_positions=num_positions,
        head_dim=x.head_dim,
        rotated=x.rotated,
        score_error_factor=x.score_error_factor,
    )


def untileable_bank_reason(bank: VisualBank) -> str | None:
    """Why a coded bank has no form in the kernel's layout; None if it has one."""
    if isinstance(bank.key, DictionaryTensor | TiledDictionary):
        return untileable_pair_reason(bank)
    for name, tensor in (("keys", bank.key), ("values", bank.value)):
        reason = untileable_reason(tensor)
        if reason:
            return f"{name}: {reason}"
    return None


def untileable_reason(x: QuantizedTensor) -> str | None:
    """Why a coded tensor has no form in the kernel's layout; None if it has one."""
    if isinstance(x, TiledLevels | TiledSigns):
        return None
    if not isinstance(x, LevelTensor | SignTensor):
        return f"{type(x).__name__} is neither level codes nor sign codes"
    reason = layouts.head_dim_reason(x.head_dim)
    if reason:
        return reason
    num_positions = x.packed.shape[-2]
    if not num_positions:
        return "the bank has no positions"
    whole = x.group_size >= num_positions
    if isinstance(x, SignTensor):
        if not whole:
            return f"sign codes with a centre per {x.group_size} positions"
        tables = x.centre
    else:
        if x.bits not in _BITS:
            return f"{x.bits}-bit codes"
        if x.granularity is not Granularity.PER_CHANNEL:
            return "level codes per token"
        if x.rotated:
            return "level codes of rotated channels"
        if not whole and x.group_size % layouts.BLOCK:
            return (
                f"a group of {x.group_size} positions is neither the whole bank nor a multiple of "
                f"the block of {layouts.BLOCK}"
            )
        tables = x.lower
    if tables.dtype != jnp.bfloat16:
        return f"tables in {tables.dtype}, not bfloat16"
    return None


def _tile_words(packed: Array, bits: int, head_dim: int, side: Side) -> Array:
    """Words of each bit of the codes in the kernel's layout, one bit after the other."""
    tile_bit = layouts.tile_keys if side == "key" else layouts.tile_values
    if bits == 1:
        return tile_bit(packed)
    codes = packing.unpack(packed, bits, head_dim)
    planes = (packing.pack((codes >> bit) & 1, 1) for bit in range(bits))
    return jnp.concatenate([tile_bit(plane) for plane in planes], axis=-1)


def _untile_words(x: TiledLevels | TiledSigns, bits: int) -> Array:
    untile = layouts.untile_keys if x.side == "key" else layouts.untile_values
    planes = [
        untile(words, x.num_positions, x.head_dim) for words in jnp.split(x.packed, bits, axis=-1)
    ]
    if bits == 1:
        return planes[0]
    codes = [packing.unpack(plane, 1, x.head_dim) << bit for bit, plane in enumerate(planes)]
    return packing.pack(sum(codes[1:], codes[0]), bits)
