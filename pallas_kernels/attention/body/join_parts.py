"""The body of one thread block: results of a launch's parts as one, for 16 queries of a head.

    o = c sum_p w_p + sum_k C[k] sum_p w_p m_p[k] + sum_p w_p D_p o_p

with the shares w of the parts, and of the thread blocks that share a team's positions, by their
log-sum-exps. Warps share the sum over virtual channels and centroids, 32 at a time.
"""

import functools
import math
from collections.abc import Callable, Sequence

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
        tile = self._tile = QueryTile(ops, spec, spec.head_dim // spec.columns)
        blocks = spec.columns // _COLUMNS
        self._share = ops.div(tile.warp, blocks)
        self._first_column = ops.mad(tile.unit, spec.columns, 0)
        block = ops.mad(ops.rem(tile.warp, blocks), _COLUMNS, self._first_column)
        self._columns = ops.mad(tile.g, 4, block)  # four of a lane's table entries
        self._rows = [tile.row(ops.add(tile.g, i)) for i in (0, 8)]

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
        ops, spec, tile = self._ops, self._spec, self._tile
        weights = [self._weights(row)[0] for row in self._rows]
        own = tile.row(tile.warp)
        own_weights, logsumexp = self._weights(own)
        sums: list[list[Value]] = [[0.0] * 4 for _ in range(4)]
        chunks = [*self._channels(weights), *self._centroids(weights)]
        for left, right in chunks:
            sums = tile.add(sums, left(), right())
        at = ops.mad(tile.warp, 4 * ROWS * _COLUMNS, ops.shared())
        at = ops.mad(tile.t, 32, ops.mad(tile.g, 4 * _COLUMNS, at))
        for j, of_tile in enumerate(sums):
            for k, x in enumerate(of_tile):
                place = 8 * (k // 2) * _COLUMNS + 4 * (k % 2) + j
                ops.store_shared(1, at, 4 * place, x)
        direct = [self._direct(own, own_weights, i) for i in range(spec.columns // _COLUMNS)]
        ops.barrier()
        there = tile.exists(tile.warp)
        at = ops.mad(tile.lane, 4, ops.mad(tile.warp, 4 * _COLUMNS, ops.shared()))
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

    # Parts of the sum: functions that return operands, whose loads are under way ------------------

    def _channels(self, weights: Sequence[Sequence[Sequence[Value]]]) -> list[tuple]:
        """This warp's runs of 32 virtual channels."""
        ops, spec, tile = self._ops, self._spec, self._tile
        begins = [0]
        for x in spec.dictionaries:
            begins.append(begins[-1] + x.size // 32)
        if not begins[-1]:
            return []
        found = []
        for i in range(0, begins[-1], spec.shares):
            chunk = ops.add(self._share, i)
            valid = ops.where_less_float(chunk, begins[-1], 1.0, 0.0)
            chunk = ops.min(chunk, begins[-1] - 1)
            part = _Choice(ops, chunk, begins[1:-1])
            begin = part.of(begins[:-1])
            number = ops.mad(tile.t, 8, ops.mad(ops.sub(chunk, begin), 32, 0))
            size = part.of([x.size for x in spec.dictionaries])
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
            outputs = self._pointer(part, "output")
            loaded = [
                [
                    tile.load8(ops.address(outputs, ops.mad(place, size, number), 4))
                    for place in self._places(row)
                ]
                for row in self._rows
            ]
            matrix = ops.address(self._pointer(part, "matrix"), tile.table, 2 * spec.head_dim**2)
            rows = [self._table_row(matrix, channel) for channel in channels]

            def left(loaded=loaded, of_channels=of_channels, valid=valid, part=part):
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

            found.append((left, functools.partial(tile.rights_of_rows, rows)))
        return found

    def _centroids(self, weights: Sequence[Sequence[Sequence[Value]]]) -> list[tuple]:
        """This warp's runs of 32 centroids."""
        ops, spec, tile = self._ops, self._spec, self._tile
        if not spec.centroids:
            return []
        found = []
        for i in range(0, BOOK // 32, spec.shares):
            chunk = ops.add(self._share, i)
            valid = ops.where_less_float(chunk, BOOK // 32, 1.0, 0.0)
            number = ops.mad(tile.t, 8, ops.mad(ops.min(chunk, BOOK // 32 - 1), 32, 0))
            loaded = [
                [
                    tile.load8(
                        ops.address(
                            ops.pointer(f"{self._parts[part]}value_mass"),
                            ops.mad(place, BOOK, number),
                            4,
                        )
                    )
                    for part in self._of_packed
                    for place in self._places(row)
                ]
                for row in self._rows
            ]
            book = ops.address(ops.pointer("book"), tile.table, 2 * spec.head_dim * spec.centroids)
            rows = [
                self._table_row(book, ops.min(ops.add(number, k), spec.centroids - 1))
                for k in range(8)
            ]

            def left(loaded=loaded, valid=valid):
                lefts = []
                for of_row, own in zip(loaded, weights, strict=True):
                    shares = [ops.fmul(x, valid) for part in self._of_packed for x in own[part]]
                    lefts.append(self._sum(of_row, shares))
                return tile.lefts(*lefts)

            found.append((left, functools.partial(tile.rights_of_rows, rows)))
        return found

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
