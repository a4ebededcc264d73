"""Tokens around their centres, before dictionary codes give them bits: units, centres, energies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.codes import groups
from vkq_jax.codes.code_tables import SideTables, align
from vkq_jax.codes.image_centres import image_centres, in_units, mean_token, nearest
from vkq_jax.pytree import frozen_pytree

if TYPE_CHECKING:
    from vkq_jax.codes.dictionary_codes import DictionaryCodes

__all__ = [
    "LARGEST",
    "Centred",
    "centre_tokens",
    "measure",
    "residual_of",
    "rows_at",
    "units_of",
]

LARGEST = 2.0**48


@frozen_pytree
class Centred:
    """Tokens and what they are coded around.

    Attributes:
        tokens: those that are not valid or not finite are 0; in bfloat16 as they came, else in
            float32.
        unit: of each channel, as stored; None: 1. All else is in these units.
        centre: as stored, finite.
        spoilt: heads whose centre is stored as NaN.
        book: the codebook.
        ids: centroid of each token; None: there is one.
        energy: |A u|^2.
    """

    tokens: Float[Array, "*lead V H"]
    unit: Float[Array, "*lead H"] | None
    centre: Float[Array, "*lead M H"]
    spoilt: Bool[Array, "*lead"]
    book: Float[Array, "*lead N H"] | None
    ids: Int32[Array, "*lead V"] | None
    energy: Float[Array, "*lead V"]


def centre_tokens(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    codes: DictionaryCodes,
    tables: SideTables | None,
    smoothing: float | Float[np.ndarray, "*#lead 1"],
) -> Centred:
    """Tokens, their units, centres, centroids and energies.

    Args:
        x, valid, codes, tables: as for `DictionaryCodes.quantize`, whose errors are raised.
        smoothing: of keys and values that are stacked, one each; else that of `codes`.
    """
    _check_tables(codes, tables, x.shape)
    tokens, bad = groups.coded_input(x, valid, LARGEST, keep_bfloat16=True)
    # Or XLA keeps them in float32, for which half of what reads them asks.
    tokens = jax.lax.optimization_barrier(tokens)
    ids = unit = book = None
    if np.any(smoothing):
        unit = groups.as_stored(_units(tokens, valid, smoothing), codes.table_dtype)
    if codes.centres > 1:
        found = image_centres(tokens, valid, codes.centres, unit)
    elif not codes.centres:
        found = jnp.zeros((*x.shape[:-2], 0, x.shape[-1]), jnp.float32)
    else:
        found = in_units(mean_token(tokens, valid)[..., None, :], unit)
    centre = groups.as_stored(found, codes.table_dtype)
    if codes.centres > 1:
        ids = nearest(tokens, centre.astype(jnp.float32), unit)
    residual = residual_of(tokens, unit, centre, None, ids)
    if codes.codebook:
        assert tables is not None
        assert tables.codebook is not None
        book = align(tables.codebook, x.ndim)
        book = jnp.broadcast_to(book, (*x.shape[:-2], *book.shape[-2:]))
        ids = nearest(measure(residual, codes, tables), measure(book, codes, tables))
        residual = residual_of(tokens, unit, centre, book, ids)
    energy = jnp.square(measure(residual, codes, tables)).sum(-1)
    energy = jnp.where(valid, energy, 0.0)
    return Centred(tokens, unit, centre, bad.any((-2, -1)), book, ids, energy)


def residual_of(
    tokens: Float[Array, "*lead V H"],
    unit: Float[Array, "*lead H"] | None,
    centre: Float[Array, "*lead M H"],
    book: Float[Array, "*lead N H"] | None,
    ids: Int32[Array, "*lead V"] | None,
) -> Float[Array, "*lead V H"]:
    """Tokens minus their centre and centroid, in units."""
    u, own = in_units(tokens, unit), centre.astype(jnp.float32)
    if ids is None or book is not None:
        u = u - own if own.shape[-2] else u
    rows = own if book is None else book
    return u if ids is None else u - rows_at(rows, ids)


def _units(
    tokens: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    smoothing: float | Float[np.ndarray, "*#lead 1"],
) -> Float[Array, "*lead H"]:
    """The unit of each channel, rms^smoothing; 1 where all tokens are alike."""
    away = tokens.astype(jnp.float32) - mean_token(tokens, valid)[..., None, :]
    total = jnp.square(jnp.where(valid[..., None], away, 0.0)).sum(-2)
    count = jnp.maximum(valid.sum(-1), 1).astype(jnp.float32)[..., None]
    return units_of(total / count, smoothing)


def units_of(
    square: Float[Array, "*lead H"], smoothing: float | Float[np.ndarray, "*#lead 1"]
) -> Float[Array, "*lead H"]:
    """The units of channels with this mean square of the distance to their mean."""
    return jnp.where(square > 0, square, 1.0) ** (smoothing / 2)


def measure(
    x: Float[Array, "*lead V H"], codes: DictionaryCodes, tables: SideTables | None
) -> Float[Array, "*lead V H"]:
    """A x, by which tokens are compared."""
    if not codes.metric:
        return x
    assert tables is not None
    assert tables.metric is not None
    metric = align(tables.metric, x.ndim)
    return jnp.einsum("...vh,...gh->...vg", x, metric, precision=jax.lax.Precision.HIGHEST)


def rows_at(
    x: Float[Array, "*lead M H"], number: Int32[Array, "*lead V"]
) -> Float[Array, "*lead V H"]:
    """The rows of these numbers, which must be those of rows: nothing is checked."""
    return jnp.take_along_axis(x, number[..., None], axis=-2, mode="promise_in_bounds")


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
