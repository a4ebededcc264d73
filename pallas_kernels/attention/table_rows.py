"""Products with the model's tables in XLA: of queries before a launch, of its sums behind it.

For tables that `table_launches` does not take, such as those in float32. Both sides take one matrix
[N, H] for each KV head: the rows of all dictionaries D^T, one class after the other, then the
centroids of the codebook. A row of D^T is a row of a table times a number of its own. So the matrix
is made of rows as the tables hold them, and the numbers multiply what comes out of the first
product and goes into the second: where rows are in bfloat16 the tensor core takes both, see
`split_einsum`. Rows are gathered at each step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.kernel_spec import BOOK
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from vkq_jax.array_types import Array, Float
from vkq_jax.bits.exact_einsum import split_einsum
from vkq_jax.codes.code_tables import ClassTables, SideTables
from vkq_jax.codes.dictionary_tensor import hadamard_dictionary

__all__ = ["TableRows", "table_rows"]


@dataclasses.dataclass(frozen=True)
class TableRows:
    """Rows of the tables of one side, for each KV head of a layer.

    Attributes:
        rows: in the tables' dtype. factor: of each row, float32.
    """

    rows: Float[Array, "K N H"]
    factor: Float[Array, "K N"]

    def scores(self, query: Float[Array, "B K Q H"]) -> Float[Array, "B K Q N"]:
        """Products of queries with the rows times their factors, float32."""
        found = split_einsum("kqh,knh->kqn", _of_heads(query), self.rows)
        return _of_sequences(found * self.factor[:, None], query.shape)

    def weighted_sum(self, weights: Float[Array, "B K Q N"]) -> Float[Array, "B K Q H"]:
        """Sums of the rows times their factors and these weights, float32."""
        of_rows = _of_heads(weights) * self.factor[:, None]
        return _of_sequences(split_einsum("kqn,knh->kqh", of_rows, self.rows), weights.shape)


def table_rows(
    x: TiledDictionary, parts: Sequence[tuple[int, int]], tables: SideTables
) -> TableRows:
    """The rows of one side, in the order of `KernelSpec.products`.

    Args:
        x: the codes. parts: of each part with a dictionary the number of its class and how many
            virtual channels it has, those of zeros included, whose factor is 0.
        tables: of the layer.
    """
    found = []
    for number, size in parts:
        learned = tables.of_class(number)
        own = _hadamard_rows(x, number) if learned is None else _learned_rows(learned)
        found.append(_padded(*own, size))
    if x.codebook:
        assert tables.codebook is not None
        factor = jnp.ones(tables.codebook.shape[:-1], jnp.float32)
        found.append(_padded(tables.codebook, factor, BOOK))
    rows, factors = zip(*found, strict=True)
    return TableRows(jnp.concatenate(rows, axis=-2), jnp.concatenate(factors, axis=-1))


def _learned_rows(learned: ClassTables) -> tuple[Array, Array]:
    """The table row of each virtual channel, and the weight of the channel."""
    if learned.synthesis is None:
        channels = learned.analysis
    else:
        channels = jnp.swapaxes(learned.synthesis, -1, -2)
    index = learned.channel[..., None].astype(jnp.int32)
    return jnp.take_along_axis(channels, index, axis=-2, mode="clip"), learned.weight


def _hadamard_rows(x: TiledDictionary, number: int) -> tuple[Array, Array]:
    """Signs, and the size that all of a row have in common."""
    dictionary = hadamard_dictionary(x.head_dim, x.virtual[number]).T
    rows, size = np.sign(dictionary), np.abs(dictionary).max(-1)
    heads = x.centre.shape[-3]
    return (
        jnp.broadcast_to(jnp.asarray(rows, jnp.bfloat16), (heads, *rows.shape)),
        jnp.broadcast_to(jnp.asarray(size), (heads, *size.shape)),
    )


def _padded(rows: Array, factor: Array, size: int) -> tuple[Array, Array]:
    """With rows of zeros behind them."""
    more = size - rows.shape[-2]
    return jnp.pad(rows, [(0, 0), (0, more), (0, 0)]), jnp.pad(factor, [(0, 0), (0, more)])


def _of_heads(x: Float[Array, "B K Q n"]) -> Float[Array, "K BQ n"]:
    """The operands of all sequences for one head's rows, side by side."""
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1, x.shape[-1])


def _of_sequences(x: Float[Array, "K BQ n"], shape: tuple[int, ...]) -> Float[Array, "B K Q n"]:
    """`_of_heads` undone, for an array that had this shape."""
    batch, heads, queries, _ = shape
    return jnp.swapaxes(x.reshape(heads, batch, queries, -1), 0, 1)
