"""Dictionary codes in the kernel's layout: each class of tokens as a run of blocks of its own."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import Side
from vkq_jax import packing
from vkq_jax.array_types import Array, Float, Int32, UInt32
from vkq_jax.cache import VisualBank
from vkq_jax.dictionary_tensor import DictionaryTensor
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.quantized import AffineTensor, QuantizedTensor

__all__ = ["MOST_CENTRES", "TiledDictionary", "tile_pair", "untileable_pair_reason"]

MOST_CENTRES = 4  # of an image: a number's two bits choose among what a lane has in registers
_MOST_BITS = 4


@frozen_pytree
class TiledDictionary(QuantizedTensor):
    """A `DictionaryTensor` of Hadamard planes, see `pallas_kernels.layout.layouts`.

    Attributes:
        packed: for each class, words in the layout of keys or of values, plane after plane.
        token_scale: for each class, words of four 8-bit scales; None: the class has no bits.
        centre: as in `DictionaryTensor`.
        centre_id: for each class, words of centroid numbers (of a codebook bytes, in the order of
            scales); None: there is one.
        taken: slots of each class of each head that hold a token.
        side: which of the two layouts. bits: planes of each class. capacities: slots of each.
        head_dim: H. num_positions: V. id_bits: of a centroid's number. codebook: as in
            `DictionaryTensor`.
    """

    packed: tuple[UInt32[Array, "*lead _"], ...]
    token_scale: tuple[UInt32[Array, "*lead _ 32 2"] | None, ...]
    centre: Float[Array, "*lead M H"]
    centre_id: tuple[UInt32[Array, "*lead _ _ _"], ...] | None
    taken: Int32[Array, "*lead C"]
    side: Side = static_field(kw_only=True)
    bits: tuple[int, ...] = static_field(kw_only=True)
    capacities: tuple[int, ...] = static_field(kw_only=True)
    head_dim: int = static_field(kw_only=True)
    num_positions: int = static_field(kw_only=True)
    id_bits: int = static_field(kw_only=True)
    codebook: bool = static_field(default=False, kw_only=True)

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
            packed=tuple(map(self._untile_words, range(len(self.bits)))),
            token_scale=tuple(
                None if words is None else layouts.untile_scales(words, capacity)
                for words, capacity in zip(self.token_scale, self.capacities, strict=True)
            ),
            centre=self.centre,
            centre_id=ids,
            virtual=tuple(bits * self.head_dim for bits in self.bits),
            head_dim=self.head_dim,
            num_positions=self.num_positions,
            num_slots=sum(self.capacities),
            id_bits=self.id_bits,
            codebook=self.codebook,
        )

    def decoding(self) -> AffineTensor:
        """Raises NotImplementedError, as `DictionaryTensor.decoding` does."""
        return self.plain().decoding()

    def num_elements(self) -> int:
        """As `DictionaryTensor.num_elements`."""
        return self.plain().num_elements()

    def _untile_words(self, number: int) -> UInt32[Array, "*lead C W"]:
        """Words of a class in the order of `vkq_jax.packing`."""
        words, bits, capacity = self.packed[number], self.bits[number], self.capacities[number]
        if not bits:
            return jnp.zeros((*words.shape[:-1], capacity, 0), jnp.uint32)
        untile = layouts.untile_keys if self.side == "key" else layouts.untile_values
        planes = jnp.split(words, bits, axis=-1)
        return jnp.concatenate([untile(x, capacity, self.head_dim) for x in planes], axis=-1)


def tile_pair(bank: VisualBank) -> VisualBank:
    """A bank of dictionary codes in the kernel's layout; for its reasons see below."""
    assert isinstance(bank.key, DictionaryTensor)
    assert isinstance(bank.value, DictionaryTensor)
    taken = jnp.concatenate(bank.counts_below(bank.length[:, None]), axis=-1)
    return dataclasses.replace(
        bank, key=_tile(bank.key, "key", taken), value=_tile(bank.value, "value", taken)
    )


def _tile(x: DictionaryTensor, side: Side, taken: Int32[Array, "*lead C"]) -> TiledDictionary:
    tile = layouts.tile_keys if side == "key" else layouts.tile_values
    bits = tuple(virtual // x.head_dim for virtual in x.virtual)
    capacities = tuple(words.shape[-2] for words in x.packed)

    def tile_class(words: Array, planes: int) -> Array:
        if not planes:
            return jnp.zeros((*words.shape[:-2], 0), jnp.uint32)
        return jnp.concatenate([tile(p) for p in jnp.split(words, planes, axis=-1)], axis=-1)

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
        tuple(map(tile_class, x.packed, bits)),
        tuple(None if s is None else layouts.tile_scales(s) for s in x.token_scale),
        x.centre,
        ids,
        taken,
        side=side,
        bits=bits,
        capacities=capacities,
        head_dim=x.head_dim,
        num_positions=x.num_positions,
        id_bits=x.id_bits,
        codebook=x.codebook,
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
    if [n > 0 for n in bank.key.virtual] != [n > 0 for n in bank.value.virtual]:
        return "a class of tokens with bits for only one of keys and values"
    return None


def _untileable_reason(x: DictionaryTensor) -> str | None:
    if x.learned:
        return "dictionaries of the model's tables, not Hadamard planes"
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
