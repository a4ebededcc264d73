"""The body of one thread block: results of a launch's parts as one, for its queries of a head.

    o = c sum_p w_p + sum_k C[k] sum_p w_p m_p[k] + sum_p w_p D_p o_p

with the shares w of the parts, and of the thread blocks that share a team's positions, by their
log-sum-exps. Warps share the sum over virtual channels and centroids, 32 at a time: each loads its
part of the tables once for all queries.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pallas_kernels.attention.body.query_tile import QueryTile
from pallas_kernels.attention.kernel_spec import BOOK
from pallas_kernels.attention.table_specs import ROWS, JoinSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOG2_E, LOWEST

__all__ = ["JoinParts"]

_COLUMNS = 32  # of results, of a warp


class JoinParts:
    """`run()` does the work of one warp.

    Operands: of each part of the launch output [splits * rows, n], logsumexp [splits * rows] and,
    with a codebook, value_mass [splits * rows, 256], float32; those of dictionaries, book and
    centre as in `FoldQueries`. Results, float32: joined [rows, H], joined_logsumexp [rows]
    (natural).
    """

    def __init__(self, ops: Operations, spec: JoinSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        tile = self._tile = QueryTile(ops, spec)
        blocks = spec.columns // _COLUMNS
        self._share = ops.div(tile.warp, blocks)
        self._first_column = ops.mad(tile.unit, spec.columns, 0)
        block = ops.mad(ops.rem(tile.warp, blocks), _COLUMNS, self._first_column)
        self._columns = ops.mad(tile.g, 4, block)  # four of a lane's table entries

    @property
    def _parts(self) -> list[str]:
        """Names of the launch's parts: first the one of output in the channels themselves."""
        direct = [""] if self._spec.direct else []
        return [*direct, *(x.part for x in self._spec.dictionaries)]

    @property
    def _of_packed(self) -> list[int]:
        """Numbers of the parts over the packed bank."""
        first = 1 if self._spec.direct and not self._spec.packed else 0
        return list(range(first, len(self._parts)))

    def run(self) -> None:
        """Everything, for this warp."""
        ops, tile = self._ops, self._tile
        products = [*self._channels(), *self._centroids()]
        tile.for_each(functools.partial(self._add, products))
        ops.barrier()
        tile.for_each(self._write)

    def _add(self, products: Sequence["_Product"], first: Value) -> None:
        """Leaves this warp's part of the sums of the tile that begins with query `first`."""
        ops, tile = self._ops, self._tile
        rows = [tile.row(ops.add(ops.add(tile.g, i), first)) for i in (0, 8)]
        weights = [self._weights(row)[0] for row in rows]
        sums: list[list[Value]] = [[0.0] * 4 for _ in range(4)]
        lefts = [(product.left(rows, weights), product.right) for product in products]
        for left, right in lefts:
            sums = tile.add(sums, left(), right())
        at = ops.mad(tile.t, 32, ops.mad(tile.g, 4 * _COLUMNS, self._sums_of(first, tile.warp)))
        for j, of_tile in enumerate(sums):
            for k, x in enumerate(of_tile):
                place = 8 * (k // 2) * _COLUMNS + 4 * (k % 2) + j
                ops.store_shared(1, at, 4 * place, x)

    def _sums_of(self, first: Value, warp: Value) -> Value:
        """Address of a warp's sums of the tile that begins with query `first`."""
        ops, words = self._ops, _COLUMNS * self._spec.warps
        return ops.mad(first, 4 * words, ops.mad(warp, 4 * ROWS * _COLUMNS, ops.shared()))

    def _write(self, first: Value) -> None:
        """Joins the sums of all warps for one query of a tile and writes them."""
        ops, spec, tile = self._ops, self._spec, self._tile
        number = ops.add(first, tile.warp)
        own, there = tile.row(number), tile.exists(number)
        own_weights, logsumexp = self._weights(own)
        direct = [self._direct(own, own_weights, i) for i in range(spec.columns // _COLUMNS)]
        at = ops.mad(tile.warp, 4 * _COLUMNS, self._sums_of(first, 0))
        at = ops.mad(tile.lane, 4, at)
        result = ops.address(ops.pointer("joined"), own, 4 * spec.head_dim)
        result = ops.address(result, ops.add(self._first_column, tile.lane), 4)
        for i, total in enumerate(direct):
            for share in range(spec.shares):
                warp = share * len(direct) + i
                total = ops.fadd(total, ops.load_shared(at, 4 * ROWS * _COLUMNS * warp))
            ops.store_float(there, result, 4 * _COLUMNS * i, total)
        once = ops.where_less(ops.add(tile.unit, tile.lane), 1, there, 0)
        ops.store_float(once, ops.address(ops.pointer("joined_logsumexp"), own, 4), 0, logsumexp)

    def _weights(self, row: Value) -> tuple[list[list[Value]], Value]:
        """The share of each part and split in a row's result, and its log-sum-exp."""
        ops = self._ops
        found = [
            [
                ops.load_float(ops.address(ops.pointer(f"{part}logsumexp"), place, 4))
                for place in self._places(row)
            ]
            for part in self._parts
        ]
        every = [x for of_part in found for x in of_part]
        highest = ops.fmax(functools.reduce(ops.fmax, every), LOWEST)
        shares = [
            [ops.exp2(ops.fmul(ops.fsub(x, highest), LOG2_E)) for x in of_part] for of_part in found
        ]
        total = functools.reduce(ops.fadd, [x for of_part in shares for x in of_part])
        factor = ops.reciprocal(ops.fmax(total, 1e-30))
        logsumexp = ops.fma(ops.log2(total), math.log(2.0), highest)
        return [[ops.fmul(x, factor) for x in of_part] for of_part in shares], logsumexp

    def _places(self, row: Value) -> list[Value]:
        """Where a row's results of each split are."""
        return [self._ops.add(row, i * self._spec.rows) for i in range(self._spec.splits)]

    # Parts of the sum -----------------------------------------------------------------------------

    def _channels(self) -> list["_Product"]:
        """This warp's runs of 32 virtual channels."""
        ops, spec, tile = self._ops, self._spec, self._tile
        begins = [0]
        for x in spec.dictionaries:
            begins.append(begins[-1] + x.size // 32)
        found = []
        for i in range(0, begins[-1], spec.shares):
            chunk = ops.add(self._share, i)
            valid = ops.where_less_float(chunk, begins[-1], 1.0, 0.0)
            chunk = ops.min(chunk, begins[-1] - 1)
            part = _Choice(ops, chunk, begins[1:-1])
            begin = part.of(begins[:-1])
            number = ops.mad(tile.t, 8, ops.mad(ops.sub(chunk, begin), 32, 0))
            virtual = part.of([x.virtual for x in spec.dictionaries])
            # Virtual channels of zeros have none of their own; there are eight or none.
            own = ops.min(number, ops.sub(virtual, 8))
            valid = ops.where_less_float(number, virtual, valid, 0.0)
            at = ops.mad(tile.table, virtual, own)
            channels, of_channels = (
                [
                    word
                    for offset in (0, 16)
                    for word in ops.load4(ops.address(self._pointer(part, name), at, 4), offset)
                ]
                for name in ("channel", "weight")
            )
            found.append((part, number, valid, channels, of_channels))
        return [self._of_channels(*x) for x in found]

    def _of_channels(
        self,
        part: "_Choice",
        number: Value,
        valid: Value,
        channels: Sequence[Value],
        of_channels: Sequence[Value],
    ) -> "_Product":
        """A run of virtual channels from `number` on, those of a lane, of a dictionary."""
        ops, spec, tile = self._ops, self._spec, self._tile
        size = part.of([x.size for x in spec.dictionaries])
        matrix = ops.address(self._pointer(part, "matrix"), tile.table, 2 * spec.head_dim**2)
        rows = [self._table_row(matrix, channel) for channel in channels]
        outputs = self._pointer(part, "output")

        def left(queries: Sequence[Value], weights: Sequence[Sequence[Sequence[Value]]]):
            loaded = [
                [
                    tile.load8(ops.address(outputs, ops.mad(place, size, number), 4))
                    for place in self._places(row)
                ]
                for row in queries
            ]

            def compute():
                factors = [ops.fmul(ops.from_bits(x), valid) for x in of_channels]
                lefts = []
                for of_row, own in zip(loaded, weights, strict=True):
                    first = 1 if spec.direct else 0
                    shares = [
                        part.of_floats([of_part[k] for of_part in own[first:]])
                        for k in range(spec.splits)
                    ]
                    total = self._sum(of_row, shares)
                    lefts.append([ops.fmul(x, y) for x, y in zip(total, factors, strict=True)])
                return tile.lefts(*lefts)

            return compute

        return _Product(left, functools.partial(tile.rights_of_rows, rows))

    def _centroids(self) -> list["_Product"]:
        """This warp's runs of 32 centroids."""
        ops, spec, tile = self._ops, self._spec, self._tile
        found = []
        for i in range(0, BOOK // 32 if spec.centroids else 0, spec.shares):
            chunk = ops.add(self._share, i)
            valid = ops.where_less_float(chunk, BOOK // 32, 1.0, 0.0)
            number = ops.mad(tile.t, 8, ops.mad(ops.min(chunk, BOOK // 32 - 1), 32, 0))
            book = ops.address(ops.pointer("book"), tile.table, 2 * spec.head_dim * spec.centroids)
            rows = [
                self._table_row(book, ops.min(ops.add(number, k), spec.centroids - 1))
                for k in range(8)
            ]
            left = functools.partial(self._of_centroids, number, valid)
            found.append(_Product(left, functools.partial(tile.rights_of_rows, rows)))
        return found

    def _of_centroids(
        self,
        number: Value,
        valid: Value,
        queries: Sequence[Value],
        weights: Sequence[Sequence[Sequence[Value]]],
    ):
        """Weights of centroids from `number` on, those of a lane: a function, loads under way."""
        ops, spec, tile = self._ops, self._spec, self._tile
        parts = self._of_packed[:1] if spec.alike else self._of_packed
        loaded = [
            [
                tile.load8(
                    ops.address(
                        ops.pointer(f"{self._parts[part]}value_mass"),
                        ops.mad(place, BOOK, number),
                        4,
                    )
                )
                for part in parts
                for place in self._places(row)
            ]
            for row in queries
        ]

        def compute():
            lefts = []
            for of_row, own in zip(loaded, weights, strict=True):
                shares = [x for part in self._of_packed for x in own[part]]
                if spec.alike:  # the same weights, in all these shares
                    shares = [
                        functools.reduce(ops.fadd, shares[k :: spec.splits])
                        for k in range(spec.splits)
                    ]
                shares = [ops.fmul(x, valid) for x in shares]
                lefts.append(self._sum(of_row, shares))
            return tile.lefts(*lefts)

        return compute

    def _sum(self, loaded: Sequence[Sequence[Value]], shares: Sequence[Value]) -> list[Value]:
        """Eight numbers, of all parts or splits in their shares."""
        ops = self._ops
        total = [ops.fmul(x, shares[0]) for x in loaded[0]]
        for numbers, share in zip(loaded[1:], shares[1:], strict=True):
            total = [ops.fma(x, share, y) for x, y in zip(numbers, total, strict=True)]
        return total

    def _table_row(self, table: Value, row: Value) -> list[Value]:
        """This lane's four entries of a row of a table [_, H]."""
        ops = self._ops
        address = ops.address(table, row, 2 * self._spec.head_dim)
        return ops.load2(ops.address(address, self._columns, 2), 0)

    def _pointer(self, part: "_Choice", name: str) -> Value:
        return part.of_addresses(
            [self._ops.pointer(f"{x.part}{name}") for x in self._spec.dictionaries]
        )

    def _direct(self, row: Value, weights: Sequence[Sequence[Value]], number: int) -> Value:
        """A row's share of `output` and centre, in channel `number` times 32 plus the lane's."""
        ops, spec, tile = self._ops, self._spec, self._tile
        column = ops.add(ops.mad(tile.lane, 1, self._first_column), _COLUMNS * number)
        total: Value = 0.0
        if spec.direct:
            for place, share in zip(self._places(row), weights[0], strict=True):
                output = ops.address(ops.pointer("output"), place, 4 * spec.head_dim)
                total = ops.fma(ops.load_float(ops.address(output, column, 4)), share, total)
        if spec.centred:
            shares = [x for part in self._of_packed for x in weights[part]]
            centre = ops.address(ops.pointer("centre"), tile.stored_head(row), 2 * spec.head_dim)
            half = ops.load_half(ops.address(centre, column, 2))
            centre = ops.from_bits(ops.shift_left(half, 16))
            total = ops.fma(centre, functools.reduce(ops.fadd, shares), total)
        return total


class _Product(NamedTuple):
    """A part of the sum.

    Attributes:
        left: from rows of queries and their shares, a function that returns left operands, whose
            loads are under way then. right: returns right operands, which are loaded once.
    """

    left: Callable[..., Callable[[], Any]]
    right: Callable[[], list[list[list[Value]]]]


class _Choice:
    """One of several things, by the part that a number falls into.

    Args:
        number: a word. begins: of each part but the first.
    """

    def __init__(self, ops: Operations, number: Value, begins: Sequence[int]):
        """Keeps what the methods need."""
        self._ops, self._number, self._begins = ops, number, begins

    def of(self, words: Sequence[Value]) -> Value:
        """A word."""
        return self._choose(self._ops.where_less, words)

    def of_floats(self, floats: Sequence[Value]) -> Value:
        """A float."""
        return self._choose(self._ops.where_less_float, floats)

    def of_addresses(self, addresses: Sequence[Value]) -> Value:
        """An address."""
        return self._choose(self._ops.where_less_address, addresses)

    def _choose(self, where_less: Callable[..., Value], things: Sequence[Value]) -> Value:
        found = things[-1]
        for begin, thing in zip(self._begins[::-1], things[-2::-1], strict=True):
            found = where_less(self._number, begin, thing, found)
        return found
