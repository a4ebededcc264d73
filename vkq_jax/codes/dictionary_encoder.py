"""The encoder of dictionary codes: centres, classes of tokens, bits and scales."""

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
from vkq_jax.codes.dictionary_tensor import DictionaryTensor, hadamard_bits
from vkq_jax.codes.image_centres import image_centres, nearest
from vkq_jax.codes.normal_steps import NORMAL_STEPS
from vkq_jax.codes.token_classes import ClassMap, assign_classes
from vkq_jax.pytree import frozen_pytree

if TYPE_CHECKING:
    from vkq_jax.codes.dictionary_codes import DictionaryCodes

__all__ = ["encode", "encode_pair"]

_LARGEST = 2.0**48


def encode(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    codes: DictionaryCodes,
    tables: SideTables | None = None,
) -> DictionaryTensor:
    """`DictionaryCodes.quantize`, arguments and errors are its own."""
    centred = _centre(x, valid, codes, tables)
    class_map = assign_classes(centred.energy, valid, codes.classes)
    tensor = _encode(centred, class_map, class_map.positions_of_slots(), codes, tables)
    return dataclasses.replace(tensor, class_map=class_map)


def encode_pair(
    key: Float[Array, "B K V H"],
    value: Float[Array, "B K V H"],
    valid: Bool[Array, "B K V"],
    codes: tuple[DictionaryCodes, DictionaryCodes],
    tables: CodeTables | None = None,
) -> tuple[DictionaryTensor, DictionaryTensor, ClassMap]:
    """Codes keys and values of the same tokens, whose classes and slots they share.

    A token's energy is that of its key and of its value, each in units of their mean.

    Returns:
        Keys, values and the map, which neither tensor holds; positions must be valid from the
        first one on, so that a length says which ones are.
    """
    if codes[0] == codes[1] and not codes[0].uses_tables:
        # As one tensor: half as many kernels to compile and to launch.
        return _encode_both(jnp.stack([key, value]), valid, codes[0])
    sides = (None, None) if tables is None else (tables.key, tables.value)
    centred = [
        _centre(x, valid, side_codes, side)
        for x, side_codes, side in zip((key, value), codes, sides, strict=True)
    ]
    of_keys, of_values = (_in_units_of_mean(c.energy, valid) for c in centred)
    class_map = assign_classes(of_keys + of_values, valid, codes[0].classes)
    slots = class_map.positions_of_slots()
    coded = [
        _encode(c, class_map, slots, side_codes, side)
        for c, side_codes, side in zip(centred, codes, sides, strict=True)
    ]
    return coded[0], coded[1], dataclasses.replace(class_map, valid=None)


def _encode_both(
    x: Float[Array, "2 B K V H"], valid: Bool[Array, "B K V"], codes: DictionaryCodes
) -> tuple[DictionaryTensor, DictionaryTensor, ClassMap]:
    """`encode_pair` of keys and values, stacked, with the same codes and without tables."""
    both = jnp.stack([valid, valid])
    centred = _centre(x, both, codes, None)
    of_keys, of_values = _in_units_of_mean(centred.energy, both)
    class_map = assign_classes(of_keys + of_values, valid, codes.classes)
    slots = [
        (jnp.stack([position] * 2), jnp.stack([taken] * 2))
        for position, taken in class_map.positions_of_slots()
    ]
    coded = _encode(centred, class_map, slots, codes, None)
    key, value = (jax.tree.map(lambda x, side=side: x[side], coded) for side in range(2))
    return key, value, dataclasses.replace(class_map, valid=None)


@frozen_pytree
class _Centred:
    """Tokens, less their centre.

    Attributes:
        unit: of each channel, as stored; None: 1. All else is in these units.
        centre: as stored. ids: centroid of each token; None: there is one. residual: u.
        energy: |A u|^2.
    """

    unit: Float[Array, "*lead H"] | None
    centre: Float[Array, "*lead M H"]
    ids: Int32[Array, "*lead V"] | None
    residual: Float[Array, "*lead V H"]
    energy: Float[Array, "*lead V"]


def _centre(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    codes: DictionaryCodes,
    tables: SideTables | None,
) -> _Centred:
    _check_tables(codes, tables, x.shape)
    given = x.dtype
    x, bad = groups.coded_input(x, valid, _LARGEST)
    ids = unit = None
    if codes.smoothing:
        unit = groups.as_stored(_units(x, valid, codes.smoothing), codes.table_dtype)
        x = x / unit.astype(jnp.float32)[..., None, :]
    if codes.centres > 1:
        # Clipped values of bfloat16 are such values still.
        tokens = x.astype(given) if given == jnp.bfloat16 and unit is None else x
        centre = groups.as_stored(image_centres(tokens, valid, codes.centres), codes.table_dtype)
        own = centre.astype(jnp.float32)
        ids = nearest(tokens, own)
        residual = x - _rows_at(own, ids)
    elif not codes.centres:
        centre = jnp.zeros((*x.shape[:-2], 0, x.shape[-1]), codes.table_dtype)
        residual = x
    else:
        mean = groups.masked_mean(jnp.swapaxes(x, -1, -2), _per_channel(valid, x.shape))
        centre = groups.as_stored(mean[..., None, :], codes.table_dtype)
        residual = x - centre.astype(jnp.float32)
    if codes.codebook:
        assert tables is not None
        assert tables.codebook is not None
        book = align(tables.codebook, x.ndim)
        book = jnp.broadcast_to(book, (*x.shape[:-2], *book.shape[-2:]))
        ids = nearest(_measure(residual, codes, tables), _measure(book, codes, tables))
        residual = residual - _rows_at(book, ids)
    residual = jnp.where(valid[..., None], residual, 0.0)
    energy = jnp.square(_measure(residual, codes, tables)).sum(-1)
    # The scale of a token has no NaN, and its bits have none; the centre has.
    centre = jnp.where(bad.any((-2, -1))[..., None, None], jnp.nan, centre)
    return _Centred(unit, centre, ids, residual, energy)


def _units(
    x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"], smoothing: float
) -> Float[Array, "*lead H"]:
    """The unit of each channel, rms^smoothing; 1 where all tokens are alike."""
    tokens, of_channels = jnp.swapaxes(x, -1, -2), _per_channel(valid, x.shape)
    mean = groups.masked_mean(tokens, of_channels)
    square = groups.masked_mean(jnp.square(tokens - mean[..., None]), of_channels)
    return jnp.where(square > 0, square, 1.0) ** (smoothing / 2)


def _encode(
    centred: _Centred,
    class_map: ClassMap,
    slots: list[tuple[Int32[Array, "*lead _"], Bool[Array, "*lead _"]]],
    codes: DictionaryCodes,
    tables: SideTables | None,
) -> DictionaryTensor:
    packed, scales, ids = [], [], []
    head_dim = centred.residual.shape[-1]
    for number, (position, taken) in enumerate(slots):
        u = _rows_at(centred.residual, position)
        u = jnp.where(taken[..., None], u, 0.0)
        virtual = codes.virtual_channels(number, head_dim)
        words, scale = _encode_class(u, virtual, number, codes, tables)
        packed.append(words)
        scales.append(scale)
        if centred.ids is not None:
            chosen = jnp.take_along_axis(centred.ids, position, axis=-1, mode="promise_in_bounds")
            ids.append(jnp.where(taken, chosen, 0))
    return DictionaryTensor(
        packed=tuple(packed),
        token_scale=tuple(scales),
        unit=centred.unit,
        centre=centred.centre,
        centre_id=packing.pack(jnp.concatenate(ids, -1), codes.id_bits) if ids else None,
        virtual=tuple(codes.virtual_channels(c, head_dim) for c in range(len(codes.classes))),
        head_dim=head_dim,
        num_positions=class_map.num_positions,
        num_slots=class_map.num_slots,
        id_bits=codes.id_bits,
        codebook=codes.codebook > 0,
        learned=codes.learned,
    )


def _encode_class(
    u: Float[Array, "*lead C H"],
    virtual: int,
    number: int,
    codes: DictionaryCodes,
    tables: SideTables | None,
) -> tuple[UInt32[Array, "*lead C W"], Shaped[Array, "*lead C"] | None]:
    """Bits and scales of the tokens of one class."""
    if not virtual:
        return packing.pack(jnp.zeros((*u.shape[:-1], 0), jnp.uint32), 1), None
    learned = tables.of_class(number) if codes.learned and tables is not None else None
    if learned is None:
        z = rotation.rotate(u)
        size = jnp.sqrt(jnp.square(z).mean(-1, keepdims=True))
        bits = hadamard_bits(u.shape[-1], virtual)
        step = np.asarray(NORMAL_STEPS, np.float32)[bits]
        top, unit, step_or_one = (
            x.reshape(*[1] * (u.ndim - 1), -1)
            for x in (2**bits - 1, step / step[0], np.where(bits, step, 1))
        )
        code = _grid(z / (_or_one(size) * step_or_one), top)
        planes = [(code >> j & 1)[..., bits > j] for j in range(bits[0])]
        bit = jnp.concatenate(planes, axis=-1)
        # In units of half the first channel's step, as the dictionary is.
        decoded = (2 * code - top).astype(jnp.float32) * unit
        norm = size[..., 0] * (step[0] / 2)
    else:
        bit, decoded = _encode_learned(u, learned, codes, tables)
        norm = _size(u, codes, tables)[..., 0]
        z, decoded = _measure(u, codes, tables), _measure(decoded, codes, tables)
    words = packing.pack(bit.astype(jnp.uint32), 1)
    if codes.scale is None:
        return words, None
    if codes.scale == "norm":
        return words, log_scale.encode(norm)
    along = (z * decoded).sum(-1)
    scale = jnp.square(z).sum(-1) / jnp.where(along > 0, along, jnp.inf)
    if codes.scale == "between":
        scale = jnp.sqrt(scale * norm)
    return words, log_scale.encode(scale)


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
    return jnp.sqrt(jnp.square(_measure(u, codes, tables)).mean(-1, keepdims=True))


def _grid(v: Float[Array, "*x"], top: Int32[Array, "*#x"] | np.ndarray) -> Int32[Array, "*x"]:
    """The codes 0 to `top` of numbers on a grid of step 1 around 0."""
    highest = jnp.asarray(top, jnp.float32)
    return jnp.clip(jnp.round(v + highest / 2), 0.0, highest).astype(jnp.int32)


def _measure(
    x: Float[Array, "*lead V H"], codes: DictionaryCodes, tables: SideTables | None
) -> Float[Array, "*lead V H"]:
    """A x: what tokens are compared by."""
    if not codes.metric:
        return x
    assert tables is not None
    assert tables.metric is not None
    metric = align(tables.metric, x.ndim)
    return jnp.einsum("...vh,...gh->...vg", x, metric, precision=jax.lax.Precision.HIGHEST)


def _rows_at(
    x: Float[Array, "*lead M H"], number: Int32[Array, "*lead V"]
) -> Float[Array, "*lead V H"]:
    """The rows of these numbers, which must be those of rows: nothing is checked."""
    return jnp.take_along_axis(x, number[..., None], axis=-2, mode="promise_in_bounds")


def _per_channel(valid: Bool[Array, "*lead V"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    return jnp.broadcast_to(valid[..., None, :], (*shape[:-2], shape[-1], shape[-2]))


def _or_one(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    return jnp.where(x == 0, 1.0, x)


def _in_units_of_mean(
    energy: Float[Array, "*lead V"], valid: Bool[Array, "*lead V"]
) -> Float[Array, "*lead V"]:
    return energy / _or_one(groups.masked_mean(energy, valid))[..., None]


def _check_tables(
    codes: DictionaryCodes, tables: SideTables | None, shape: tuple[int, ...]
) -> None:
    if codes.uses_tables and tables is None:
        raise ValueError(
            "these codes need the tables of a model (`vkq calibrate` makes them): pass `tables`"
        )
    if tables is None:
        return
    head_dim = shape[-1]
    if codes.codebook and (tables.codebook is None or tables.codebook.shape[-2] != codes.codebook):
        found = None if tables.codebook is None else tables.codebook.shape[-2]
        raise ValueError(f"expected a codebook of {codes.codebook} centroids, got {found}")
    if codes.learned and (tables.classes is None or len(tables.classes) != len(codes.classes)):
        raise ValueError(f"expected dictionaries of {len(codes.classes)} classes in the tables")
    if codes.metric and tables.metric is None:
        raise ValueError("expected a metric in the tables, got none")
    of_channels = [c.analysis for c in tables.classes or () if c is not None]
    for table in (tables.codebook, tables.metric, *of_channels):
        if table is not None and table.shape[-1] != head_dim:
            raise ValueError(f"expected tables of head_dim {head_dim}, got {list(table.shape)}")
    if codes.learned and tables.classes is not None:
        for number, learned in enumerate(tables.classes):
            expected = codes.virtual_channels(number, head_dim)
            if learned is not None and learned.virtual != expected:
                raise ValueError(
                    f"class {number}: expected a dictionary of {expected} columns, got "
                    f"{learned.virtual}"
                )
