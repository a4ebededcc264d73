"""Dictionary codes in the kernel's layout: each class of tokens as a run of blocks of its own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import Side
from vkq_jax.array_types import Array, Float, Int32, UInt32
from vkq_jax.bits import packing
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = [
    "MOST_CENTRES",
    "MOST_VIRTUAL",
    "TiledDictionary",
    "stored_virtual",
    "tile_pair",
    "untileable_pair_reason",
]

MOST_CENTRES = 4  # of an image: a number's two bits choose among what a lane has in registers
MOST_VIRTUAL = 3 * layouts.HEAD_DIMS[-1]  # of a class with a learned dictionary
_MOST_BITS = 4
_SCALE_OF_ONE = 128  # see `vkq_jax.bits.log_scale`


@frozen_pytree
class TiledDictionary(QuantizedTensor):
    """A `DictionaryTensor`, see `pallas_kernels.layout.layouts`.

    Attributes:
        packed: for each class, words in the layout of keys or of values, plane after plane. In
            a learned dictionary virtual channels take the place of channels, with bits of zero
            behind them up to `stored`.
        token_scale: for each class, words of four 8-bit scales; None: the class has no bits.
        centre, unit: as in `DictionaryTensor`.
        centre_id: for each class, words of centroid numbers (of a codebook bytes, in the order of
            scales); None: there is one.
        taken: slots of each class of each head that hold a token.
        side: which of the two layouts.
        virtual: n of each class.
        stored: bits of a token of each class, those of zero included.
        capacities: slots of each.
        head_dim: H.
        num_positions: V.
        id_bits: of a centroid's number.
        codebook, learned: as in `DictionaryTensor`.
        scaled: whether tokens have a scale; else `token_scale` is 1.
    """

    packed: tuple[UInt32[Array, "*lead _"], ...]
    token_scale: tuple[UInt32[Array, "*lead _ 32 2"] | None, ...]
    centre: Float[Array, "*lead M H"]
    centre_id: tuple[UInt32[Array, "*lead _ _ _"], ...] | None
    taken: Int32[Array, "*lead C"]
    unit: Float[Array, "*lead H"] | None = None
    side: Side = static_field(kw_only=True)
    virtual: tuple[int, ...] = static_field(kw_only=True)
    stored: tuple[int, ...] = static_field(kw_only=True)
    capacities: tuple[int, ...] = static_field(kw_only=True)
    head_dim: int = static_field(kw_only=True)
    num_positions: int = static_field(kw_only=True)
    id_bits: int = static_field(kw_only=True)
    codebook: bool = static_field(default=False, kw_only=True)
    learned: bool = static_field(default=False, kw_only=True)
    scaled: bool = static_field(default=True, kw_only=True)

    @property
    def bits(self) -> tuple[int, ...]:
        """Planes of each class, of Hadamard dictionaries; of a learned one 0 or 1."""
        if self.learned:
            return tuple(int(n > 0) for n in self.virtual)
        return tuple(n // self.head_dim for n in self.virtual)

    def check(self) -> None:
        """Raises ValueError where a class has more tokens than slots."""
        for number, capacity in enumerate(self.capacities):
            taken = self.taken[..., number]
            if ((taken < 0) | (taken > capacity)).any():
                raise ValueError(f"taken of class {number} must be in [0, {capacity}]")

    def plain(self) -> DictionaryTensor:
        """The tensor it was made from; its bank has the map of classes."""
        ids = None
        if self.centre_id is not None:
            untile = _untile_bytes if self.codebook else layouts.untile_ids
            of_classes = [
                untile(words, capacity)
                for words, capacity in zip(self.centre_id, self.capacities, strict=True)
            ]
            ids = packing.pack(jnp.concatenate(of_classes, axis=-1), self.id_bits)
        return DictionaryTensor(
            packed=tuple(map(self._untile_words, range(len(self.virtual)))),
            token_scale=tuple(
                None if words is None or not self.scaled else layouts.untile_scales(words, capacity)
                for words, capacity in zip(self.token_scale, self.capacities, strict=True)
            ),
            centre=self.centre,
            centre_id=ids,
            unit=self.unit,
            virtual=self.virtual,
            head_dim=self.head_dim,
            num_positions=self.num_positions,
            num_slots=sum(self.capacities),
            id_bits=self.id_bits,
            codebook=self.codebook,
            learned=self.learned,
        )

    def decoding(self) -> AffineTensor:
        """Raises NotImplementedError, as `DictionaryTensor.decoding` does."""
        return self.plain().decoding()

    def num_elements(self) -> int:
        """As `DictionaryTensor.num_elements`; shapes suffice."""
        return jax.eval_shape(TiledDictionary.plain, self).num_elements()

    def _untile_words(self, number: int) -> UInt32[Array, "*lead C W"]:
        """Words of a class in the order of `vkq_jax.bits.packing`."""
        words, stored, capacity = self.packed[number], self.stored[number], self.capacities[number]
        if not stored:
            return jnp.zeros((*words.shape[:-1], capacity, 0), jnp.uint32)
        untile = layouts.untile_keys if self.side == "key" else layouts.untile_values
        dim = _plane_dim(stored) if self.learned else self.head_dim
        planes = jnp.split(words, stored // dim, axis=-1)
        whole = jnp.concatenate([untile(x, capacity, dim) for x in planes], axis=-1)
        return whole[..., : packing.num_words(self.virtual[number], 1)]


def tile_pair(bank: VisualBank) -> VisualBank:
    """A bank of dictionary codes in the kernel's layout; for its reasons see below."""
    assert isinstance(bank.key, DictionaryTensor)
    assert isinstance(bank.value, DictionaryTensor)
    taken = jnp.concatenate(bank.counts_below(bank.length[:, None]), axis=-1)
    stored = _stored(bank.key, bank.value)
    key, value = _tile(bank.key, "key", taken, stored), _tile(bank.value, "value", taken, stored)
    return dataclasses.replace(bank, key=key, value=value)


def stored_virtual(virtual: int) -> int:
    """Bits that a token of a learned dictionary of so many virtual channels takes."""
    least, most = layouts.HEAD_DIMS
    return virtual and (least if virtual <= least else most * -(-virtual // most))


def _stored(key: DictionaryTensor, value: DictionaryTensor) -> tuple[int, ...]:
    """Bits of a token of each class; keys and values with learned dictionaries take as many."""
    return tuple(
        stored_virtual(max(n)) if key.learned else 0
        for n in zip(key.virtual, value.virtual, strict=True)
    )


def _plane_dim(stored: int) -> int:
    return min(stored, layouts.HEAD_DIMS[-1])


def _tile(
    x: DictionaryTensor, side: Side, taken: Int32[Array, "*lead C"], stored: tuple[int, ...]
) -> TiledDictionary:
    tile = layouts.tile_keys if side == "key" else layouts.tile_values
    stored = stored if x.learned else x.virtual
    capacities = tuple(words.shape[-2] for words in x.packed)

    def tile_class(words: Array, stored: int) -> Array:
        if not stored:
            return jnp.zeros((*words.shape[:-2], 0), jnp.uint32)
        padding = [(0, 0)] * (words.ndim - 1) + [(0, stored // 32 - words.shape[-1])]
        words = jnp.pad(words, padding) if x.learned else words
        planes = stored // (_plane_dim(stored) if x.learned else x.head_dim)
        return jnp.concatenate([tile(p) for p in jnp.split(words, planes, axis=-1)], axis=-1)

    def tile_scale(scale: Array | None, words: Array, virtual: int) -> Array | None:
        if scale is None and virtual:
            scale = jnp.full(words.shape[:-1], _SCALE_OF_ONE, jnp.uint8)
        return None if scale is None else layouts.tile_scales(scale)

    ids = None
    if x.centre_id is not None:
        numbers = packing.unpack(x.centre_id, x.id_bits, x.num_slots)
        stops = [sum(capacities[: c + 1]) for c in range(len(capacities) - 1)]
        of_classes = jnp.split(numbers, stops, axis=-1)
        if x.codebook:
            ids = tuple(layouts.tile_scales(y.astype(jnp.uint8)) for y in of_classes)
        else:
            ids = tuple(layouts.tile_ids(of_class, x.id_bits) for of_class in of_classes)
    return TiledDictionary(
        tuple(map(tile_class, x.packed, stored)),
        tuple(map(tile_scale, x.token_scale, x.packed, x.virtual)),
        x.centre,
        ids,
        taken,
        x.unit,
        side=side,
        virtual=x.virtual,
        stored=stored,
        capacities=capacities,
        head_dim=x.head_dim,
        num_positions=x.num_positions,
        id_bits=x.id_bits,
        codebook=x.codebook,
        learned=x.learned,
        scaled=all(s is not None for s, n in zip(x.token_scale, x.virtual, strict=True) if n),
    )


def _untile_bytes(words: UInt32[Array, "*lead blocks 32 2"], count: int) -> Int32[Array, "*lead V"]:
    return layouts.untile_scales(words, count).astype(jnp.int32)


def untileable_pair_reason(bank: VisualBank) -> str | None:
    """Why a bank of dictionary codes has no form in the kernel's layout; None if it has one."""
    if isinstance(bank.key, TiledDictionary):
        return None
    if not isinstance(bank.value, DictionaryTensor) or bank.class_map is None:
        return "keys in dictionary codes, values not in those of the same classes"
    for name, x in (("keys", bank.key), ("values", bank.value)):
        assert isinstance(x, DictionaryTensor)
        if reason := _untileable_reason(x):
            return f"{name}: {reason}"
    assert isinstance(bank.key, DictionaryTensor)
    if bank.value.unit is not None:
        return "values: channels in units of their own"
    if bank.key.learned != bank.value.learned:
        return "dictionaries of the model's tables for only one of keys and values"
    if [n > 0 for n in bank.key.virtual] != [n > 0 for n in bank.value.virtual]:
        return "a class of tokens with bits for only one of keys and values"
    return None


def _untileable_reason(x: DictionaryTensor) -> str | None:
    if x.learned:
        return _untileable_learned_reason(x)
    if x.head_dim not in layouts.STORED_HEAD_DIMS:
        return f"dictionary codes of head_dim {x.head_dim}, none of {layouts.STORED_HEAD_DIMS}"
    if x.centre.shape[-2] > MOST_CENTRES:
        return f"{x.centre.shape[-2]} centroids of an image, more than {MOST_CENTRES}"
    if max(x.virtual) > _MOST_BITS * x.head_dim:
        return f"{max(x.virtual) // x.head_dim} planes in a class, more than {_MOST_BITS}"
    if any(channels % x.head_dim for channels in x.virtual):
        return "a class of tokens with half a plane"
    if x.centre.dtype != jnp.bfloat16:
        return f"tables in {x.centre.dtype}, not bfloat16"
    if not x.num_positions:
        return "the bank has no positions"
    return None


def _untileable_learned_reason(x: DictionaryTensor) -> str | None:
    if x.centre.shape[-2] > 1:
        return "centroids of an image beside dictionaries of the model's tables"
    if max(x.virtual) > MOST_VIRTUAL:
        return f"{max(x.virtual)} virtual channels in a class, more than {MOST_VIRTUAL}"
    if not any(x.virtual):
        return "dictionaries of the model's tables without virtual channels"
    if not x.num_positions:
        return "the bank has no positions"
    return None
