"""Learned dictionaries: products with them outside of the launch over their bits.

Each class of tokens has a dictionary of its own, D [H, n]. A launch takes its n virtual channels in
place of the channels, as sign codes without a centre that are not rotated, and the query D^T q:

    s[t] = q . c + q . C[id[t]] + a[t] (2 sum_m (D^T q)_m code[t, m] - sum_m (D^T q)_m)
    o = c sum_t p[t] + sum_k C[k] m_k + sum over classes of D (2 sum_t p[t] a[t] code[t] - ...)

So a class is a *part* of the launch, with a query and results of its own: sums over its virtual
channels, relative to its own log-sum-exp. Parts are joined by these before the second product.
Both products are launches (`table_launches`) or XLA's (`table_rows`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeGuard

import jax.numpy as jnp

from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.table_rows import TableRows
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.pytree import take_layer

__all__ = [
    "class_groups",
    "folds_outside",
    "join_parts",
    "part_dim",
    "scores_of_centres",
    "table_parts",
]

_LEAST_DIM = 64  # of a part, whose tokens may have no bits at all


def folds_outside(x: QuantizedTensor) -> TypeGuard[TiledDictionary]:
    """Whether these codes have dictionaries of the model's tables."""
    return isinstance(x, TiledDictionary) and x.learned


def class_groups(classes: Sequence[Packed]) -> list[tuple[Packed, ...]]:
    """The classes of each part: one with bits; of the last part those without bits, too."""
    coded = [(packed,) for packed in classes if packed.key.bits]
    uncoded = tuple(packed for packed in classes if not packed.key.bits)
    if not coded:
        return [uncoded]
    return [*coded[:-1], coded[-1] + uncoded]


def part_dim(x: TiledDictionary, group: Sequence[Packed]) -> int:
    """Virtual channels of a part, those of zeros included."""
    return x.stored[group[0].number] or _LEAST_DIM


def table_parts(x: TiledDictionary, groups: Sequence[Sequence[Packed]]) -> list[tuple[int, int]]:
    """Class and virtual channels of each part, for `table_rows`."""
    return [(group[0].number, part_dim(x, group)) for group in groups]


def scores_of_centres(
    query: Float[Array, "B K Q H"], key: TiledDictionary, layer: Int32[Array, ""]
) -> dict[str, Float[Array, "B K Q"]]:
    """The "shift" that all scores of a query have in common; none without a centre."""
    if not key.centre.shape[-2]:
        return {}
    centre = take_layer(key.centre, layer).astype(jnp.float32)
    return {"shift": jnp.sum(query * centre, axis=-1)}


def join_parts(
    results: Sequence[Array],
    value: TiledDictionary,
    parts: int,
    rows: TableRows,
    layer: Int32[Array, ""],
) -> tuple[Float[Array, "B K Q H"], Float[Array, "B K Q"]]:
    """Output and natural log-sum-exp of a whole launch from those of its parts.

    Args:
        results: of dense banks, if any, output and log-sum-exp; of each class the same, with a
            codebook also the weights by centroid.
        value: the values. parts: their number. rows: of the tables of values. layer: its number.
    """
    size = 3 if value.codebook else 2
    first = len(results) - size * parts
    dense, packed = results[:first], results[first:]
    outputs, sums, masses = packed[::size], packed[1::size], packed[2::size]
    logsumexp = functools.reduce(jnp.logaddexp, [*sums, *dense[1:]])
    highest = jnp.where(jnp.isfinite(logsumexp), logsumexp, 0.0)
    shares = [jnp.exp(x - highest)[..., None] for x in sums]
    # Each part has its share of the virtual channels, then of the weights by centroid.
    weighed = [share * x for share, x in zip(shares, outputs, strict=True)]
    if value.codebook:
        of_parts = [share * x for share, x in zip(shares, masses, strict=True)]
        weighed.append(functools.reduce(jnp.add, of_parts))
    total = rows.weighted_sum(jnp.concatenate(weighed, axis=-1))
    if value.centre.shape[-2]:
        centre = take_layer(value.centre, layer).astype(jnp.float32)
        total = total + centre * functools.reduce(jnp.add, shares)
    if dense:
        total = total + jnp.exp(dense[1] - highest)[..., None] * dense[0]
    return total, logsumexp
