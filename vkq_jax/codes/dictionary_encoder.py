"""The encoder of dictionary codes: classes of tokens, bits and scales."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Bool, Float, Int32, Shaped, UInt32
from vkq_jax.bits import log_scale, packing, rotation
from vkq_jax.codes import groups
from vkq_jax.codes.code_tables import ClassTables, CodeTables, SideTables, align
from vkq_jax.codes.dictionary_centring import (
    Centred,
    centre_tokens,
    measure,
    residual_of,
    rows_at,
)
from vkq_jax.codes.dictionary_tensor import DictionaryTensor, hadamard_bits
from vkq_jax.codes.normal_steps import NORMAL_STEPS
from vkq_jax.codes.token_classes import ClassMap, assign_classes
from vkq_jax.pytree import frozen_pytree

if TYPE_CHECKING:
    from vkq_jax.codes.dictionary_codes import DictionaryCodes

__all__ = [
    "ATTENTION_FLOOR",
    "alike",
    "encode",
    "encode_pair",
    "sorting_energy",
]

ATTENTION_FLOOR = 1.0  # attention that a token may still get, in units of the mean


def encode(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    codes: DictionaryCodes,
    tables: SideTables | None = None,
) -> DictionaryTensor:
    """`DictionaryCodes.quantize`, arguments and errors are its own."""
    centred = centre_tokens(x, valid, codes, tables, codes.smoothing)
    class_map = assign_classes(centred.energy, valid, codes.classes)
    (tensor,) = _encode(centred, class_map, class_map.positions_of_slots(), (codes,), tables)
    return dataclasses.replace(tensor, class_map=class_map)


def encode_pair(
    key: Float[Array, "B K V H"],
    value: Float[Array, "B K V H"],
    valid: Bool[Array, "B K V"],
    codes: tuple[DictionaryCodes, DictionaryCodes],
    tables: CodeTables | None = None,
    attention: Float[Array, "B K V"] | None = None,
) -> tuple[DictionaryTensor, DictionaryTensor, ClassMap]:
    """Codes keys and values of the same tokens, whose classes and slots they share.

    A token's energy is that of its key and of its value, each in units of their mean. Tokens are
    sorted by it, times the `attention` that they got so far, if that is given.

    Returns:
        Keys, values and the map, which neither tensor holds; positions must be valid from the
        first one on, so that a length says which ones are.
    """
    if alike(codes, tables):
        return _encode_both(key, value, valid, codes, tables, attention)
    sides = (None, None) if tables is None else (tables.key, tables.value)
    centred = [
        centre_tokens(x, valid, side_codes, side, side_codes.smoothing)
        for x, side_codes, side in zip((key, value), codes, sides, strict=True)
    ]
    order = sorting_energy(centred[0].energy, centred[1].energy, valid, attention)
    class_map = assign_classes(order, valid, codes[0].classes)
    slots = class_map.positions_of_slots()
    coded = [
        _encode(c, class_map, slots, (side_codes,), side)[0]
        for c, side_codes, side in zip(centred, codes, sides, strict=True)
    ]
    return coded[0], coded[1], dataclasses.replace(class_map, valid=None)


def alike(codes: tuple[DictionaryCodes, DictionaryCodes], tables: CodeTables | None) -> bool:
    """Whether keys and values can be coded as one tensor."""
    key, value = codes
    value = dataclasses.replace(value, smoothing=key.smoothing)
    if not key.learned:  # whose bits do not depend on the rule of scales
        value = dataclasses.replace(value, scale=key.scale)
    sides = () if tables is None else (tables.key, tables.value)
    of_sides = {
        (jax.tree.structure(side), *((x.shape, x.dtype) for x in jax.tree.leaves(side)))
        for side in sides
    }
    return key == value and len(of_sides) < 2


def _encode_both(
    key: Float[Array, "B K V H"],
    value: Float[Array, "B K V H"],
    valid: Bool[Array, "B K V"],
    codes: tuple[DictionaryCodes, DictionaryCodes],
    tables: CodeTables | None,
    attention: Float[Array, "B K V"] | None,
) -> tuple[DictionaryTensor, DictionaryTensor, ClassMap]:
    """`encode_pair` of codes that are alike: half as many kernels to compile and to launch."""

    def stack(key: Array, value: Array) -> Array:
        return jnp.stack([key, value])

    both = stack(valid, valid)
    of_both = None
    if tables is not None:  # [K, ...] of each side, for tokens [2, B, K, ...]
        of_both = jax.tree.map(lambda *x: stack(*x)[:, None], tables.key, tables.value)
    smoothing = np.asarray([c.smoothing for c in codes], np.float32).reshape(2, 1, 1, 1)
    centred = centre_tokens(stack(key, value), both, codes[0], of_both, smoothing)
    order = sorting_energy(centred.energy[0], centred.energy[1], valid, attention)
    class_map = assign_classes(order, valid, codes[0].classes)
    position, taken = class_map.positions_of_slots()
    slots = stack(position, position), stack(taken, taken)
    coded = _encode(centred, class_map, slots, codes, of_both)
    return coded[0], coded[1], dataclasses.replace(class_map, valid=None)


def _encode(
    centred: Centred,
    class_map: ClassMap,
    slots: tuple[Int32[Array, "*lead S"], Bool[Array, "*lead S"]],
    codes: tuple[DictionaryCodes, ...],
    tables: SideTables | None,
) -> list[DictionaryTensor]:
    """The tensor of these codes; of two, those of keys and values that are stacked."""
    position, taken = slots
    head_dim, settings = centred.tokens.shape[-1], codes[0]
    virtual = [settings.virtual_channels(c, head_dim) for c in range(len(settings.classes))]
    ids = None
    if centred.ids is not None:
        ids = jnp.take_along_axis(centred.ids, position, axis=-1, mode="promise_in_bounds")
        ids = jnp.where(taken, ids, 0)
    packed, sizes, stop = [], [], 0
    for number, (capacity, channels) in enumerate(zip(class_map.capacities, virtual, strict=True)):
        start, stop = stop, stop + capacity
        if not channels:
            packed.append(jnp.zeros((*position.shape[:-1], capacity, 0), jnp.uint32))
            sizes.append(None)
            continue
        tokens = rows_at(centred.tokens, position[..., start:stop])
        own_ids = None if ids is None else ids[..., start:stop]
        u = residual_of(tokens, centred.unit, centred.centre, centred.book, own_ids)
        u = jnp.where(taken[..., start:stop, None], u, 0.0)
        words, size = _encode_class(u, channels, number, settings, tables)
        packed.append(words)
        sizes.append(size)
    whole = DictionaryTensor(
        packed=tuple(packed),
        token_scale=(),
        unit=centred.unit,
        centre=jnp.where(centred.spoilt[..., None, None], jnp.nan, centred.centre),
        centre_id=None if ids is None else packing.pack(ids, settings.id_bits),
        virtual=tuple(virtual),
        head_dim=head_dim,
        num_positions=class_map.num_positions,
        num_slots=class_map.num_slots,
        id_bits=settings.id_bits,
        codebook=settings.codebook > 0,
        learned=settings.learned,
    )
    tensors = []
    for side, own in enumerate(codes):
        tensor, own_sizes = whole, sizes
        if len(codes) > 1:
            tensor, own_sizes = jax.tree.map(lambda x, side=side: x[side], (whole, sizes))
        scales = tuple(None if size is None else _scale(own.scale, size) for size in own_sizes)
        unit = tensor.unit if own.smoothing else None
        tensors.append(dataclasses.replace(tensor, token_scale=scales, unit=unit))
    return tensors


@frozen_pytree
class _Sizes:
    """The figures that the scale of a token is made of.

    Attributes:
        square: |u|^2.
        along: <u, D s>.
        norm: root mean square of u, in units of D.
    """

    square: Float[Array, "*lead C"]
    along: Float[Array, "*lead C"]
    norm: Float[Array, "*lead C"]


def _scale(rule: str | None, size: _Sizes) -> Shaped[Array, "*lead C"] | None:
    """The scales of tokens, in 8 bits."""
    if rule is None:
        return None
    if rule == "norm":
        return log_scale.encode(size.norm)
    scale = size.square / jnp.where(size.along > 0, size.along, jnp.inf)
    return log_scale.encode(jnp.sqrt(scale * size.norm) if rule == "between" else scale)


def _encode_class(
    u: Float[Array, "*lead C H"],
    virtual: int,
    number: int,
    codes: DictionaryCodes,
    tables: SideTables | None,
) -> tuple[UInt32[Array, "*lead C W"], _Sizes]:
    """Bits and sizes of the tokens of one class."""
    learned = tables.of_class(number) if codes.learned and tables is not None else None
    if learned is None:
        return _encode_hadamard(u, virtual)
    bit, decoded = _encode_learned(u, learned, codes, tables)
    norm = _size(u, codes, tables)[..., 0]
    z, decoded = measure(u, codes, tables), measure(decoded, codes, tables)
    sizes = _Sizes(jnp.square(z).sum(-1), (z * decoded).sum(-1), norm)
    return packing.pack(bit, 1), sizes


def _encode_hadamard(
    u: Float[Array, "*lead C H"], virtual: int
) -> tuple[UInt32[Array, "*lead C W"], _Sizes]:
    """Bits on a uniform grid of the rotated channels, in units of their root mean square."""
    z = rotation.rotate_tokens(u)  # channels first: sums over them take a thread for each token
    square = jnp.square(z).sum(0)
    size = jnp.sqrt(square / u.shape[-1])
    bits = hadamard_bits(u.shape[-1], virtual)
    step = np.asarray(NORMAL_STEPS, np.float32)[bits]
    top, unit, step_or_one = (
        x.reshape(-1, *[1] * (z.ndim - 1))
        for x in (2**bits - 1, step / step[0], np.where(bits, step, 1))
    )
    code = _grid(z / (_or_one(size)[None] * step_or_one), top)
    # The first channels have the most bits.
    planes = [(code >> j & 1)[: np.count_nonzero(bits > j)] for j in range(bits[0])]
    words = packing.pack(jnp.concatenate(planes), 1, axis=0)
    # In units of half the first channel's step, as the dictionary is.
    decoded = (2 * code - top).astype(jnp.float32) * unit
    sizes = _Sizes(square, (z * decoded).sum(0), size * (step[0] / 2))
    return jnp.moveaxis(words, 0, -1), sizes


def _encode_learned(
    u: Float[Array, "*lead C H"],
    learned: ClassTables,
    codes: DictionaryCodes,
    tables: SideTables | None,
) -> tuple[Int32[Array, "*lead C n"], Float[Array, "*lead C H"]]:
    """Bits, and the D s that they stand for."""
    if codes.scale is not None:
        u = u / _or_one(_size(u, codes, tables))
    exact = jax.lax.Precision.HIGHEST
    z = jnp.einsum("...vh,...ch->...vc", u, align(learned.analysis, u.ndim), precision=exact)
    step, top, channel, shift = (
        x.reshape(*[1] * (u.ndim - x.ndim - 1), *x.shape[:-1], 1, x.shape[-1])
        for x in (learned.step, learned.top, learned.channel, learned.shift)
    )
    code = _grid(z / step, top)
    shape = (*code.shape[:-1], learned.virtual)
    bit = jnp.take_along_axis(code, jnp.broadcast_to(channel, shape), axis=-1) >> shift & 1
    signs = (2 * bit - 1).astype(jnp.float32)
    dictionary = align(learned.dictionary(), u.ndim)
    return bit, jnp.einsum("...vn,...hn->...vh", signs, dictionary, precision=exact)


def _size(
    u: Float[Array, "*lead C H"], codes: DictionaryCodes, tables: SideTables | None
) -> Float[Array, "*lead C 1"]:
    """Root mean square of A u over channels."""
    return jnp.sqrt(jnp.square(measure(u, codes, tables)).mean(-1, keepdims=True))


def _grid(v: Float[Array, "*x"], top: Int32[Array, "*#x"] | np.ndarray) -> Int32[Array, "*x"]:
    """The codes 0 to `top` of numbers on a grid of step 1 around 0."""
    highest = jnp.asarray(top, jnp.float32)
    return jnp.clip(jnp.round(v + highest / 2), 0.0, highest).astype(jnp.int32)


def _or_one(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    return jnp.where(x == 0, 1.0, x)


def sorting_energy(
    of_keys: Float[Array, "*lead V"],
    of_values: Float[Array, "*lead V"],
    valid: Bool[Array, "*lead V"],
    attention: Float[Array, "*lead V"] | None,
) -> Float[Array, "*lead V"]:
    """The number that tokens are sorted by; the first two arguments are energies."""
    energy = _in_units_of_mean(of_keys, valid) + _in_units_of_mean(of_values, valid)
    return energy if attention is None else energy * _attention_weights(attention, valid)


def _attention_weights(
    attention: Float[Array, "*lead V"], valid: Bool[Array, "*lead V"]
) -> Float[Array, "*lead V"]:
    """Factors of the energies of tokens, from the attention that the tokens get."""
    attention = jnp.where(jnp.isfinite(attention), attention, 0.0)
    return _in_units_of_mean(attention, valid) + ATTENTION_FLOOR


def _in_units_of_mean(
    energy: Float[Array, "*lead V"], valid: Bool[Array, "*lead V"]
) -> Float[Array, "*lead V"]:
    """Energies of tokens over the mean of the valid ones, which have any."""
    return energy / _or_one(groups.masked_mean(energy, valid))[..., None]
