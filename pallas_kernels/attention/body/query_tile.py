"""Tiles of 16 queries of one head, of all sequences, for products with its tables.

Lanes are numbered lane = 4 g + t. Left operands have queries g and g + 8, of 32 channels 8 t to
8 t + 7: two products of 16. Numbers are split into what bfloat16 holds of them and what it leaves,
16 bits of mantissa together; tables are in bfloat16.
"""

from collections.abc import Callable, Sequence

from pallas_kernels.attention.table_specs import ROWS, TableSpec
from pallas_kernels.isa.operations import Operations, Value

__all__ = ["QueryTile"]

_HIGH = 0xFFFF0000  # what a float and a bfloat16 have in common


class QueryTile:
    """Which tiles are this thread block's, and where its data lie.

    Attributes:
        lane, t, g, warp: numbers of this lane and warp.
        head: KV head. unit: number of the thread block among those that share its tiles.
        table: number of the head in tables of all layers.
    """

    def __init__(self, ops: Operations, spec: TableSpec):
        """Computes them all."""
        self._ops, self._spec = ops, spec
        self.thread = ops.thread_index()
        self.lane = ops.bit_and(self.thread, 31)
        self.t, self.g = ops.bit_and(self.lane, 3), ops.shift_right(self.lane, 2)
        self.warp = ops.uniform(ops.shift_right(self.thread, 5))
        block = ops.block_index()
        self.unit, run = ops.rem(block, spec.units), ops.div(block, spec.units)
        self.head = ops.div(run, spec.head_blocks)
        self._first = ops.mad(ops.rem(run, spec.head_blocks), ROWS * spec.block_tiles, 0)
        self.layer: Value = 0
        if spec.layers > 1:
            self.layer = ops.uniform(ops.load(ops.pointer("layer")))
        self.table = ops.mad(self.layer, spec.kv_heads, self.head)

    def exists(self, number: Value) -> Value:
        """A word, 0 where there is no query of that number, from the thread block's first one."""
        ops = self._ops
        return ops.where_less(ops.add(self._first, number), self._spec.head_rows, 1, 0)

    def row(self, number: Value) -> Value:
        """The row of such a query in arrays of queries; of the last one where there is none."""
        ops, spec = self._ops, self._spec
        of_head = ops.min(ops.add(self._first, number), spec.head_rows - 1)
        sequence, query = ops.div(of_head, spec.queries), ops.rem(of_head, spec.queries)
        return ops.mad(ops.mad(sequence, spec.kv_heads, self.head), spec.queries, query)

    def stored_head(self, row: Value) -> Value:
        """The number of a row's KV head in a bank's arrays, layers counted."""
        ops, spec = self._ops, self._spec
        head = ops.div(row, spec.queries)
        if spec.layers == 1:
            return head
        inner = spec.batch * spec.kv_heads
        behind = ops.mad(ops.div(head, inner), (spec.layers - 1) * inner, head)
        return ops.mad(self.layer, inner, behind)

    def for_each(self, action: Callable[[Value], None]) -> None:
        """Runs `action` for each tile of the thread block, with the number of its first query."""
        ops, count = self._ops, self._spec.block_tiles

        def run(tile: Value, _) -> list[Value]:
            action(ops.mad(tile, ROWS, 0))
            return []

        if count == 1:
            action(0)
        else:
            ops.loop(count, [], run)

    def load8(self, address: Value, offset: int = 0) -> list[Value]:
        """Eight floats, whose sectors other loads share."""
        return [x for i in (0, 16) for x in self._ops.load_float4(address, offset + i)]

    def lefts(
        self, first: Sequence[Value], second: Sequence[Value]
    ) -> list[tuple[list[Value], list[Value]]]:
        """Left operands of both products, upper and lower parts.

        Args:
            first, second: eight numbers of queries g and g + 8.
        """
        ops = self._ops
        parts = []
        for numbers in (first, second):
            high = [ops.from_bits(ops.bit_and(ops.as_bits(x), _HIGH)) for x in numbers]
            low = [ops.fsub(x, h) for x, h in zip(numbers, high, strict=True)]
            parts.append(
                [[ops.pack_bfloat16(*x[i : i + 2]) for i in range(0, 8, 2)] for x in (high, low)]
            )
        high, low = (
            [[parts[row][part][i + k] for k in (0, 1) for row in (0, 1)] for i in (0, 2)]
            for part in (0, 1)
        )
        return list(zip(high, low, strict=True))

    def add(
        self,
        sums: list[list[Value]],
        lefts: Sequence[tuple[list[Value], list[Value]]],
        rights: Sequence[Sequence[Sequence[Value]]],
    ) -> list[list[Value]]:
        """Sums of four tiles of columns with the products over 32 numbers added.

        Args:
            sums: of each tile. lefts: see above. rights: of each of both products and each tile.
        """
        ops = self._ops
        for parts, of_tiles in zip(lefts, rights, strict=True):
            for part in parts:
                sums = [
                    ops.mma_bfloat16(part, right, x)
                    for right, x in zip(of_tiles, sums, strict=True)
                ]
        return sums

    def rights_of_rows(self, rows: Sequence[Sequence[Value]]) -> list[list[list[Value]]]:
        """Right operands from rows of a table: column g of tile j is that of number 4 g + j.

        Args:
            rows: numbers 4 g to 4 g + 3, two words, of the rows of this lane's eight channels.
        """
        ops = self._ops
        return [
            [
                [
                    ops.bytes(rows[i + k][j // 2], rows[i + k + 1][j // 2], _SELECT[j % 2])
                    for k in (0, 2)
                ]
                for j in range(4)
            ]
            for i in (0, 4)
        ]


_SELECT = (0x5410, 0x7632)  # lower halves of two words, upper ones
