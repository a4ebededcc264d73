"""The body of one thread block: products of 16 queries with a dictionary, or with centroids.

A virtual channel is a channel of its dictionary times a weight. So the products are made of
channels, and each virtual channel looks up its own in shared memory.
"""

from pallas_kernels.attention.body.query_tile import QueryTile
from pallas_kernels.attention.table_specs import ROWS, Dictionary, FoldSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import warp_sum

__all__ = ["FoldQueries"]


class FoldQueries:
    """`run()` does the work of one warp.

    Operands: query [rows, H] float32; of each dictionary matrix [layers * heads, H, H] bfloat16,
    channel [layers * heads, n] int32 and weight [layers * heads, n] float32; book [layers * heads,
    M, H] and centre [heads of the bank, H], both bfloat16; layer [1] int32 where there are several.
    Results, float32: products [rows, N], see `KernelSpec.products`; with a centre shift [rows], the
    products with it.
    """

    def __init__(self, ops: Operations, spec: FoldSpec):
        """Loads the queries."""
        self._ops, self._spec = ops, spec
        tile = self._tile = QueryTile(ops, spec)
        self._rows = [tile.row(ops.add(tile.g, i)) for i in (0, 8)]
        self._query = []
        for row in self._rows:
            address = ops.address(ops.pointer("query"), row, 4 * spec.head_dim)
            address = ops.address(address, tile.t, 32)
            self._query.append([tile.load8(address, 128 * c) for c in self._chunks])

    @property
    def _chunks(self) -> range:
        """Runs of 32 channels."""
        return range(self._spec.head_dim // 32)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec, tile = self._ops, self._spec, self._tile
        slots = -(-max([x.size for x in spec.dictionaries] + [1]) // (32 * spec.warps))
        # This thread's numbers: the first one, how many there are, how many are not zero, then
        # their columns and weights.
        found: list[Value] = [0, 0, 0, *[0] * slots, *[0.0] * slots]
        first = 0
        for number, dictionary in enumerate(spec.dictionaries):

            def fold(_, dictionary=dictionary, first=first, number=number):
                if spec.centred and not number:
                    self._shift()
                self._fold(dictionary)
                looked_up = self._looked_up(dictionary, slots)
                return [first, dictionary.size, dictionary.virtual, *looked_up]

            found = ops.cond(ops.equal(tile.unit, number), found, fold)
            first += dictionary.size
        for number in range(len(spec.dictionaries), spec.units):

            def score(_, number=number):
                begin = (number - len(spec.dictionaries)) * spec.columns
                count = max(0, min(spec.columns, spec.centroids - begin))
                self._score(begin, count)
                columns = [tile.thread, *[0] * (slots - 1)]
                return [first + begin, spec.columns, count, *columns, *[1.0] * slots]

            found = ops.cond(ops.equal(tile.unit, number), found, score)
        ops.barrier()
        start, size, limit = found[:3]
        for i, (column, weight) in enumerate(
            zip(found[3 : 3 + slots], found[3 + slots :], strict=True)
        ):
            number = ops.add(tile.thread, 32 * spec.warps * i)
            self._write(column, weight, number, start, size, limit)

    def _fold(self, dictionary: Dictionary) -> None:
        """Leaves products with the channels of a dictionary in shared memory."""
        ops, size = self._ops, self._spec.head_dim
        matrix = ops.pointer(f"{dictionary.part}matrix")
        matrix = ops.address(matrix, self._tile.table, 2 * size * size)
        self._multiply(matrix, size, dictionary.by_columns)

    def _looked_up(self, dictionary: Dictionary, slots: int) -> list[Value]:
        """Channel of each of this thread's virtual channels, then the weight of each."""
        ops, spec, tile = self._ops, self._spec, self._tile
        found: list[list[Value]] = [[], []]
        for i in range(slots):
            number = ops.min(ops.add(tile.thread, 32 * spec.warps * i), dictionary.virtual - 1)
            near = ops.mad(tile.table, dictionary.virtual, number)
            channel, weight = (
                ops.address(ops.pointer(f"{dictionary.part}{name}"), near, 4)
                for name in ("channel", "weight")
            )
            found[0].append(ops.load(channel))
            found[1].append(ops.load_float(weight))
        return [*found[0], *found[1]]

    def _score(self, begin: int, count: int) -> None:
        """Leaves products with `count` centroids from `begin` on in shared memory."""
        ops, spec = self._ops, self._spec
        if not count:
            return
        row_bytes = 2 * spec.head_dim
        book = ops.address(ops.pointer("book"), self._tile.table, row_bytes * spec.centroids)
        self._multiply(ops.address(book, begin, row_bytes), count, by_columns=False)

    def _multiply(self, matrix: Value, count: int, by_columns: bool) -> None:
        """Leaves the queries' products with rows, or columns, of a matrix in shared memory.

        Args:
            matrix: address. count: of them.
        """
        ops, spec, tile = self._ops, self._spec, self._tile
        lefts: list = []
        for i in range(0, -(-count // 32), spec.warps):
            block = ops.min(ops.add(tile.warp, i), -(-count // 32) - 1)
            start = ops.mad(block, 32, 0)
            load = self._columns if by_columns else self._rows_of
            rights = load(matrix, start, count)
            if not lefts:  # of queries, which were on their way together with the table
                lefts = [tile.lefts(*(of_row[c] for of_row in self._query)) for c in self._chunks]
            sums: list[list[Value]] = [[0.0] * 4 for _ in range(4)]
            for c in self._chunks:
                sums = tile.add(sums, lefts[c], rights[c])
            self._leave(sums, start, by_columns)

    def _rows_of(self, matrix: Value, start: Value, count: int):
        """Right operands whose columns are rows of the matrix, see `QueryTile.add`."""
        ops, tile, size = self._ops, self._tile, 2 * self._spec.head_dim
        loaded = []
        for j in range(4):
            row = ops.min(ops.add(ops.add(start, tile.g), 8 * j), count - 1)
            address = ops.address(ops.address(matrix, row, size), tile.t, 16)
            loaded.append([ops.load4(address, 64 * c) for c in self._chunks])
        return [
            [[loaded[j][c][2 * i : 2 * i + 2] for j in range(4)] for i in (0, 1)]
            for c in self._chunks
        ]

    def _columns(self, matrix: Value, start: Value, count: int):
        """Right operands whose columns are those of the matrix, see `QueryTile.add`."""
        ops, tile, size = self._ops, self._tile, 2 * self._spec.head_dim
        del count  # a multiple of 32
        address = ops.address(matrix, ops.mad(tile.g, 4, start), 2)
        address = ops.address(address, tile.t, 8 * size)
        return [
            tile.rights_of_rows([ops.load2(address, (32 * c + i) * size) for i in range(8)])
            for c in self._chunks
        ]

    def _leave(self, sums: list[list[Value]], start: Value, by_columns: bool) -> None:
        """Stores sums of 32 columns in shared memory."""
        ops, spec, tile = self._ops, self._spec, self._tile
        at = ops.mad(tile.g, 4 * spec.stride, ops.mad(start, 4, ops.shared()))
        at = ops.mad(tile.t, 32 if by_columns else 8, at)
        for j, of_tile in enumerate(sums):
            for k, x in enumerate(of_tile):
                column = 4 * (k % 2) + j if by_columns else 8 * j + k % 2
                ops.store_shared(1, at, 4 * (8 * (k // 2) * spec.stride + column), x)

    def _write(
        self, column: Value, weight: Value, number: Value, start: Value, size: Value, limit: Value
    ) -> None:
        """Writes a number of all queries: that of a column of shared memory times a weight.

        Args:
            column, weight: see above. number: of the product, from `start` on.
            size: how many there are. limit: how many are not zero.
        """
        ops, spec, tile = self._ops, self._spec, self._tile
        result = ops.address(ops.pointer("products"), ops.add(start, number), 4)
        at = ops.mad(column, 4, ops.shared())
        for query in range(ROWS):
            x = ops.fmul(ops.load_shared(at, 4 * spec.stride * query), weight)
            x = ops.where_less_float(number, limit, x, 0.0)
            there = ops.where_less(number, size, tile.exists(query), 0)
            address = ops.address(result, tile.row(query), 4 * spec.products)
            ops.store_float(there, address, 0, x)

    def _shift(self) -> None:
        """Writes the queries' products with their centres."""
        ops, spec, tile = self._ops, self._spec, self._tile
        for i, (row, query) in enumerate(zip(self._rows, self._query, strict=True)):
            centre = ops.address(ops.pointer("centre"), tile.stored_head(row), 2 * spec.head_dim)
            centre = ops.address(centre, tile.t, 16)
            total: Value = 0.0
            for c in self._chunks:
                words = ops.load4(centre, 64 * c)
                for k, x in enumerate(query[c]):
                    word = words[k // 2]
                    bits = ops.bit_and(word, 0xFFFF0000) if k % 2 else ops.shift_left(word, 16)
                    total = ops.fma(x, ops.from_bits(bits), total)
            total = warp_sum(ops, total, (1, 2))
            mine = tile.exists(ops.add(tile.g, 8 * i))
            mine = ops.where_less(tile.t, 1, mine, 0)
            mine = ops.where_less(tile.warp, 1, mine, 0)
            ops.store_float(mine, ops.address(ops.pointer("shift"), row, 4), 0, total)
