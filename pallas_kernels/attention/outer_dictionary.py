"""Learned dictionaries: products with them in XLA, before and after a launch over their bits.

Each class of tokens has a dictionary of its own, D [H, n]. A launch takes its n virtual channels in
place of the channels, as sign codes without a centre that are not rotated, and the query D^T q:

    s[t] = q . c + q . C[id[t]] + a[t] (2 sum_m (D^T q)_m code[t, m] - sum_m (D^T q)_m)
    o = c sum_t p[t] + sum_k C[k] m_k + sum over classes of D (2 sum_t p[t] a[t] code[t] - ...)

So a class is a *part* of the launch, with a query and results of its own: sums over its virtual
channels, relative to its own log-sum-exp. Parts are joined by these before the second product.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeGuard

import jax.numpy as jnp

from pallas_kernels.attention.kernel_spec import BOOK, Packed
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.code_tables import CodeTables, SideTables
from vkq_jax.dictionary_tensor import hadamard_dictionary
from vkq_jax.exact_einsum import exact_einsum
from vkq_jax.pytree import take_layer
from vkq_jax.quantized import QuantizedTensor

__all__ = ["class_groups", "fold_queries", "folds_outside", "join_parts", "part_dim"]

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


def fold_queries(
    query: Float[Array, "B K Q H"],
    key: TiledDictionary,
    groups: Sequence[Sequence[Packed]],
    tables: CodeTables,
    layer: Int32[Array, ""],
) -> dict[str, Float[Array, "B K Q ..."]]:
    """The query that each part takes, by operand name.

    With a codebook also the scores by centroid, "book"; with a centre the "shift" and "slope" that
    all scores of a query have in common.
    """
    names = [f"{group[0].name}query" for group in groups]
    dictionaries = [_dictionary(key, group, tables.key) for group in groups]
    if key.codebook:
        names.append("book")
        dictionaries.append(_book(tables.key))
    folded = exact_einsum("bkqh,khn->bkqn", query, jnp.concatenate(dictionaries, axis=-1))
    rows, start = {}, 0
    for name, dictionary in zip(names, dictionaries, strict=True):
        stop = start + dictionary.shape[-1]
        rows[name] = folded[..., start:stop]
        start = stop
    if key.centre.shape[-2]:
        centre = take_layer(key.centre, layer).astype(jnp.float32)
        rows["shift"] = jnp.sum(query * centre, axis=-1)
        rows["slope"] = jnp.ones_like(rows["shift"])
    return rows


def join_parts(
    results: Sequence[Array],
    value: TiledDictionary,
    groups: Sequence[Sequence[Packed]],
    tables: CodeTables,
    layer: Int32[Array, ""],
) -> tuple[Float[Array, "B K Q H"], Float[Array, "B K Q"]]:
    """Output and natural log-sum-exp of a whole launch from those of its parts.

    Args:
        results: of dense banks, if any, output and log-sum-exp; of each class the same, with a
            codebook also the weights by centroid.
        value: the values. groups: of each part. tables: of the layer. layer: its number.
    """
    size = 3 if value.codebook else 2
    first = len(results) - size * len(groups)
    dense, packed = results[:first], results[first:]
    outputs, sums, masses = packed[::size], packed[1::size], packed[2::size]
    logsumexp = functools.reduce(jnp.logaddexp, [*sums, *dense[1:]])
    highest = jnp.where(jnp.isfinite(logsumexp), logsumexp, 0.0)
    shares = [jnp.exp(x - highest)[..., None] for x in sums]
    weighed = [share * x for share, x in zip(shares, outputs, strict=True)]
    dictionaries = [_dictionary(value, group, tables.value) for group in groups]
    if value.codebook:
        mass = functools.reduce(
            jnp.add, [share * x for share, x in zip(shares, masses, strict=True)]
        )
        weighed.append(mass)
        dictionaries.append(_book(tables.value))
    total = exact_einsum(
        "bkqn,khn->bkqh",
        jnp.concatenate(weighed, axis=-1),
        jnp.concatenate(dictionaries, axis=-1),
    )
    if value.centre.shape[-2]:
        centre = take_layer(value.centre, layer).astype(jnp.float32)
        total = total + centre * functools.reduce(jnp.add, shares)
    if dense:
        total = total + jnp.exp(dense[1] - highest)[..., None] * dense[0]
    return total, logsumexp


def _book(tables: SideTables) -> Float[Array, "K H M"]:
    """The codebook, with columns of zeros for centroids that there are not."""
    assert tables.codebook is not None
    book = jnp.swapaxes(tables.codebook.astype(jnp.float32), -1, -2)
    return jnp.pad(book, [(0, 0)] * (book.ndim - 1) + [(0, BOOK - book.shape[-1])])


def _dictionary(
    x: TiledDictionary, group: Sequence[Packed], tables: SideTables
) -> Float[Array, "K H n"]:
    """D of a part, with columns of zeros for bits that are only stored."""
    number, stored = group[0].number, part_dim(x, group)
    learned = tables.of_class(number)
    if learned is not None:
        found = learned.dictionary()
    else:
        found = jnp.asarray(hadamard_dictionary(x.head_dim, x.virtual[number]))
        found = jnp.broadcast_to(found, (x.centre.shape[-3], *found.shape))
    return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, stored - found.shape[-1])])
