"""Random banks of dictionary codes in the kernel's layout."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import TiledDictionary
from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import Side
from pallas_kernels.layout.tiled_dictionary import stored_virtual
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import ClassTables, CodeTables, SideTables
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.quantized import Quantizer
from vkq_jax.codes.token_classes import ClassMap, assign_classes
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.slots import filled

__all__ = ["bits_of_tokens", "random_bank", "random_tables"]


@dataclasses.dataclass(frozen=True)
class _Draws:
    """Random arrays [*lead, ...], each from the next key."""

    lead: tuple[int, int, int]
    keys: Iterator[jax.Array]

    def uniform(self, *shape: int) -> Array:
        """Numbers from 0 to 1."""
        return jax.random.uniform(next(self.keys), (*self.lead, *shape))

    def normal(self, *shape: int) -> Array:
        """Numbers around 0, of variance 1."""
        return jax.random.normal(next(self.keys), (*self.lead, *shape))

    def words(self, count: int) -> Array:
        """Words of random bits."""
        return jax.random.bits(next(self.keys), (*self.lead, count), jnp.uint32)

    def scales(self, slots: int) -> Array:
        """8-bit scales of tokens around 1, tiled."""
        code = jnp.clip(jnp.round(8 * jnp.log2(jnp.exp(0.3 * self.normal(slots)))) + 128, 1, 255)
        return layouts.tile_scales(code.astype(jnp.uint8))

    def centroid_numbers(self, slots: int, codes: DictionaryCodes) -> Array | None:
        """The centroid of each token, tiled; None where there is one at most."""
        count = codes.codebook or codes.centres
        if count < 2:
            return None
        ids = jax.random.randint(next(self.keys), (*self.lead, slots), 0, count)
        if codes.codebook:
            return layouts.tile_scales(ids.astype(jnp.uint8))
        return layouts.tile_ids(ids, codes.id_bits)


def bits_of_tokens(codes: Quantizer, head_dim: int) -> float:
    """Bits of a token of one side, on average: planes, its scale and its centroid's number."""
    assert isinstance(codes, DictionaryCodes)
    has_scale = codes.scale is not None
    per_token = [8 * (n > 0 and has_scale) + n for n in _virtual_of(codes, head_dim)]
    shares = [c.share for c in codes.classes]
    return codes.id_bits + sum(s * bits for s, bits in zip(shares, per_token, strict=True))


def random_bank(
    quant: KVQuantConfig,
    lead: tuple[int, int, int],
    positions: int,
    head_dim: int,
    length: Int32[Array, "B"],
    key: jax.Array,
) -> VisualBank:
    """A bank of layers [L, B, K], its words random, its tokens in classes by chance."""
    assert isinstance(quant.key, DictionaryCodes)
    assert isinstance(quant.value, DictionaryCodes)
    draws = _Draws(lead, iter(jax.random.split(key, 64)))
    valid: Bool[Array, "L B K V"] = filled(jnp.broadcast_to(length[:, None], lead), positions)
    class_map = assign_classes(draws.uniform(positions), valid, quant.key.classes)
    number = class_map.classes()
    taken = jnp.stack(
        [(number == c).sum(-1, dtype=jnp.int32) for c in range(len(class_map.capacities))], axis=-1
    )
    of_sides = (_virtual_of(codes, head_dim) for codes in (quant.key, quant.value))
    stored = tuple(map(stored_virtual, map(max, *of_sides)))

    def tensor(side: Side, codes: DictionaryCodes) -> TiledDictionary:
        return _random_tensor(draws, side, codes, stored, class_map, taken, head_dim)

    key_tensor, value_tensor = tensor("key", quant.key), tensor("value", quant.value)
    return VisualBank(key_tensor, value_tensor, length, class_map=class_map)


def _random_tensor(
    draws: _Draws,
    side: Side,
    codes: DictionaryCodes,
    stored: tuple[int, ...],
    class_map: ClassMap,
    taken: Int32[Array, "L B K C"],
    head_dim: int,
) -> TiledDictionary:
    """Keys or values; `stored` are the virtual channels of learned dictionaries, of both sides."""
    virtual = _virtual_of(codes, head_dim)
    of_tokens = stored if codes.learned else virtual
    count = layouts.key_words if side == "key" else layouts.value_words
    of_classes: list[tuple[Any, Any, Any]] = []
    for bits, slots in zip(of_tokens, class_map.capacities, strict=True):
        dim = head_dim
        if codes.learned:  # a plane's
            dim = min(bits, layouts.HEAD_DIMS[-1]) or head_dim
        words = draws.words(bits // dim * count(slots, dim))
        scales = draws.scales(slots) if bits else None
        of_classes.append((words, scales, draws.centroid_numbers(slots, codes)))
    packed, token_scale, centre_id = zip(*of_classes, strict=True)
    centre = 0.3 * draws.normal(codes.centres, head_dim)
    unit = None
    if codes.smoothing:
        unit = jnp.exp(0.3 * draws.normal(head_dim)).astype(jnp.bfloat16)
    return TiledDictionary(
        packed,
        token_scale,
        centre.astype(jnp.bfloat16),
        centre_id if codes.id_bits else None,
        taken,
        unit,
        side=side,
        virtual=virtual,
        stored=of_tokens,
        capacities=class_map.capacities,
        head_dim=head_dim,
        num_positions=class_map.num_positions,
        id_bits=codes.id_bits,
        codebook=codes.codebook > 0,
        learned=codes.learned,
    )


def _virtual_of(codes: DictionaryCodes, head_dim: int) -> tuple[int, ...]:
    """Virtual channels of each class of tokens."""
    return tuple(codes.virtual_channels(c, head_dim) for c in range(len(codes.classes)))


def random_tables(
    quant: KVQuantConfig, kv_heads: int, head_dim: int, key: jax.Array
) -> CodeTables | None:
    """Tables of one layer; None where the codes need none."""
    sides = (quant.key, quant.value)
    if not any(isinstance(codes, DictionaryCodes) and codes.uses_tables for codes in sides):
        return None
    return CodeTables(
        *(
            _random_side_tables(codes, kv_heads, head_dim, jax.random.fold_in(key, number))
            for number, codes in enumerate(sides)
        )
    )


def _random_side_tables(
    codes: Quantizer, kv_heads: int, head_dim: int, key: jax.Array
) -> SideTables:
    assert isinstance(codes, DictionaryCodes)
    of_book, *of_classes = jax.random.split(key, 1 + len(codes.classes))
    book = None
    if codes.codebook:
        shape = (kv_heads, codes.codebook, head_dim)
        book = 0.3 * jax.random.normal(of_book, shape, jnp.bfloat16)
    if not codes.learned:
        return SideTables(codebook=book)
    classes = [
        _random_dictionary(n, kv_heads, head_dim, own) if n else None
        for n, own in zip(_virtual_of(codes, head_dim), of_classes, strict=True)
    ]
    return SideTables(codebook=book, classes=tuple(classes))


def _random_dictionary(virtual: int, kv_heads: int, head_dim: int, key: jax.Array) -> ClassTables:
    """Channels of bits 0, 1, ... from the first channel on, then again, as many as there are."""
    number = jnp.arange(virtual, dtype=jnp.int32)
    channel, shift = number % head_dim, number // head_dim
    top = 2 ** (-(-virtual // head_dim)) - 1

    def of_heads(x: Array) -> Array:
        return jnp.broadcast_to(x, (kv_heads, *x.shape))

    size = (kv_heads, head_dim, head_dim)
    return ClassTables(
        analysis=(head_dim**-0.5 * jax.random.normal(key, size)).astype(jnp.bfloat16),
        synthesis=None,
        step=jnp.ones((kv_heads, head_dim)),
        top=jnp.full((kv_heads, head_dim), top, jnp.int32),
        channel=of_heads(channel),
        shift=of_heads(shift),
        weight=of_heads(2.0 ** (shift - 1)),
    )
