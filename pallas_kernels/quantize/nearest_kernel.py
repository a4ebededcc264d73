"""The body of one thread block: the nearest centroid of a codebook for tokens of a head.

A thread block holds the codebook of one head, times -2, in shared memory and takes tokens of all
sequences, a warp 32 of one sequence. Distances come out of the tensor core as they are compared:
sums of products begin at |c|^2 + 2 <mean, c>, a row of numbers for each head of a sequence. In a
metric, |A u|^2, the centroids are A^T A c: two halves in bfloat16, as the rows of A are.

| step | who | how |
|---|---|---|
| left operands | lane 4 g + t | of tokens 8 j + g 16 bytes of every 32 channels, read once |
| distances to 8 centroids | warp | rows of the codebook in the same order of channels |
| squares of A (x - mean) | warp | as distances; without a metric lanes add up squares |
| nearest | lane, then those of equal g | of its own centroids, in the order of their numbers |
"""

import dataclasses

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import exchange_float, of_lane_row, split_bfloat16, warp_sum

__all__ = ["TILE", "WARPS", "NearestKernel", "NearestSpec"]

WARPS = 16  # so many that no lane has more than 128 registers
TILE = 8  # centroids of a product
_GROUP = 32  # tokens of a warp
_RUN = 32  # channels of which a lane has eight in a row
_PIECE = 16  # bytes that a lane copies at once
_DEVICE = 132  # multiprocessors of an H100 or H200, a thread block each
_UNROLL = 2  # products with 8 centroids in the body of the loop
_MOST_ROUNDS = 4
_COPY = 0.1  # of a round, that copying a codebook takes
_SAME_TOKEN = (1, 2)  # bits of lanes that share g


@dataclasses.dataclass(frozen=True)
class NearestSpec:
    """One launch: tokens of one layer.

    Attributes:
        sides: keys or values, or both.
        batch, kv_heads, positions, head_dim: of tokens [sides, batch * heads, V, H].
        centroids: of a codebook, a multiple of 8. centred: whether heads have a mean.
        metric: whether distances are in one.
    """

    sides: int
    batch: int
    kv_heads: int
    positions: int
    head_dim: int
    centroids: int
    centred: bool
    metric: bool

    @property
    def groups(self) -> int:
        """Runs of 32 tokens of a sequence."""
        return -(-self.positions // _GROUP)

    @property
    def rounds(self) -> int:
        """Runs of tokens that a warp takes, one after the other, so that a device is filled."""

        def cost(rounds: int) -> float:
            return -(-self._grid(rounds) // _DEVICE) * (rounds + _COPY)

        return min(range(1, _MOST_ROUNDS + 1), key=cost)

    @property
    def blocks(self) -> int:
        """Thread blocks that share a codebook."""
        return self.grid // (self.sides * self.kv_heads)

    @property
    def grid(self) -> int:
        """Thread blocks."""
        return self._grid(self.rounds)

    def _grid(self, rounds: int) -> int:
        blocks = -(-self.batch * self.groups // (WARPS * rounds))
        return self.sides * self.kv_heads * blocks

    @property
    def row_bytes(self) -> int:
        """Bytes of a token of a head, and of a centroid."""
        return 2 * self.head_dim

    @property
    def halves(self) -> int:
        """Rows of bfloat16 that a centroid takes."""
        return 2 if self.metric else 1

    @property
    def tables(self) -> dict[str, int]:
        """Rows in shared memory: of which operands, and how many."""
        book = {"book": self.halves * self.centroids}
        return book | ({"root": 2 * self.head_dim} if self.metric else {})

    @property
    def tables_bytes(self) -> int:
        """Shared memory of all rows."""
        return sum(self.tables.values()) * self.row_bytes

    @property
    def shared_words(self) -> int:
        """Words of shared memory: rows, and for each warp what its sums begin at."""
        return self.tables_bytes // 4 + WARPS * self.centroids


class NearestKernel:
    """`run()` does the work of one warp.

    Operands: x [sides * batch * heads * V, H] bfloat16, finite; length [batch] int32, tokens of
    each sequence, from the first position on; book [sides * heads * halves * M, H] bfloat16,
    centroids times -2; bias [sides * batch * heads, M] float32, see above; with means centre
    [sides * batch * heads, H] float32. In a metric root [sides * heads * 2 * H, H] bfloat16, rows
    of A, upper halves first; with means away [sides * batch * heads, H] float32, -A mean, in the
    place of centre. Results: ids [sides * batch * heads * V] int32, the nearest centroid of each
    token; energy, as many float32, |x - mean - centroid|^2, 0 where there is no token.
    """

    def __init__(self, ops: Operations, spec: NearestSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        self._thread = ops.thread_index()
        self._lane = ops.bit_and(self._thread, 31)
        self._warp = ops.uniform(ops.shift_right(self._thread, 5))
        self._g, self._t = ops.shift_right(self._lane, 2), ops.bit_and(self._lane, 3)
        block = ops.block_index()
        self._table, self._block = ops.div(block, spec.blocks), ops.rem(block, spec.blocks)
        self._side = ops.div(self._table, spec.kv_heads)
        self._kv_head = ops.rem(self._table, spec.kv_heads)
        self._book = ops.shared()
        biases = ops.mad(self._warp, 4 * spec.centroids, self._book)
        self._biases = ops.add(biases, spec.tables_bytes)
        # Rows of odd numbers have every other 64 bytes changed: eight lanes read from all banks.
        turn = ops.mad(ops.bit_and(self._g, 1), 64, 0)
        row = ops.mad(self._g, spec.row_bytes, ops.mad(self._t, _PIECE, self._book))
        self._rows = ops.add(row, turn), ops.sub(row, turn)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        first = 0
        for name, count in spec.tables.items():
            self._copy_rows(name, first, count)
            first += count
        ops.group_copies()
        ops.wait_for_copies()
        ops.barrier()

        def take(i: Value, _: list[Value]) -> list[Value]:
            warps = ops.mad(self._block, spec.rounds, i)
            self._take(ops.mad(warps, WARPS, self._warp))
            return []

        ops.loop(spec.rounds, [], take)

    def _copy_rows(self, name: str, begin: int, count: int) -> None:
        """Starts to copy the rows of a table to shared memory, 16 bytes a lane at once."""
        ops, spec = self._ops, self._spec
        pieces = spec.row_bytes // _PIECE
        rows = 32 * WARPS // pieces  # at once
        row, piece = ops.div(self._thread, pieces), ops.rem(self._thread, pieces)
        base = ops.address(ops.pointer(name), self._table, count * spec.row_bytes)
        source = ops.address(base, piece, _PIECE)
        turned = ops.bit_xor(piece, ops.mad(ops.bit_and(row, 1), 4, 0))
        target = ops.mad(row, spec.row_bytes, ops.mad(turned, _PIECE, self._book))
        for first in range(0, count, rows):
            number = ops.add(row, first)
            exists = ops.where_less(number, count, 1, 0)
            address = ops.address(source, ops.min(number, count - 1), spec.row_bytes)
            place = ops.add(target, (begin + first) * spec.row_bytes)
            ops.copy_to_shared_where(exists, place, address)

    def _take(self, group: Value) -> None:
        """One run of tokens; behind the last one that once more, written by nobody."""
        ops, spec = self._ops, self._spec
        exists = ops.where_less(group, spec.batch * spec.groups, 1, 0)
        group = ops.min(group, spec.batch * spec.groups - 1)
        sequence = ops.div(group, spec.groups)
        first = ops.mad(ops.rem(group, spec.groups), _GROUP, 0)
        row = ops.mad(ops.mad(self._side, spec.batch, sequence), spec.kv_heads, self._kv_head)
        self._copy_biases(row)
        tokens = [self._token(row, ops.add(first, ops.add(self._g, 8 * j))) for j in range(4)]
        squares = (self._measured if spec.metric else self._squares)(row, tokens)
        ops.wait_for_copies()
        ops.warp_barrier()
        least, ids = self._nearest(tokens)
        energies = [ops.fmax(ops.fadd(a, b), 0.0) for a, b in zip(squares, least, strict=True)]
        own = of_lane_row(ops, self._lane, ids)
        energy = of_lane_row(ops, self._lane, [ops.as_bits(e) for e in energies])
        position = ops.add(first, self._lane)
        length = ops.load(ops.address(ops.pointer("length"), sequence, 4))
        energy = ops.where_less(position, length, energy, 0)
        place = ops.mad(row, spec.positions, position)
        exists = ops.where_less(position, spec.positions, exists, 0)
        ops.store(exists, ops.address(ops.pointer("ids"), place, 4), 0, own)
        ops.store(exists, ops.address(ops.pointer("energy"), place, 4), 0, energy)

    def _copy_biases(self, row: Value) -> None:
        """Starts to copy what the sums of this warp's tokens begin at to shared memory."""
        ops, spec = self._ops, self._spec
        ops.warp_barrier()  # those of the last run of tokens are read
        base = ops.address(ops.pointer("bias"), row, 4 * spec.centroids)
        pieces = 4 * spec.centroids // _PIECE
        for first in range(0, pieces, 32):
            number = ops.add(self._lane, first)
            exists = ops.where_less(number, pieces, 1, 0)
            source = ops.address(base, ops.min(number, pieces - 1), _PIECE)
            ops.copy_to_shared_where(exists, ops.mad(number, _PIECE, self._biases), source)
        ops.group_copies()

    def _token(self, row: Value, position: Value) -> list[list[Value]]:
        """Four words of every 32 channels of a token."""
        ops, spec = self._ops, self._spec
        number = ops.mad(row, spec.positions, ops.min(position, spec.positions - 1))
        start = ops.address(ops.pointer("x"), number, spec.row_bytes)
        start = ops.address(start, self._t, _PIECE)
        return [ops.load4(start, 2 * first) for first in range(0, spec.head_dim, _RUN)]

    def _squares(self, row: Value, tokens: list[list[list[Value]]]) -> list[Value]:
        """The square of x - mean of each token of this lane's."""
        ops, spec = self._ops, self._spec
        sums: list[list[Value]] = [[0.0] * 2 for _ in tokens]
        start = ops.address(ops.pointer("centre"), row, 4 * spec.head_dim) if spec.centred else None
        for number, first in enumerate(range(0, spec.head_dim, _RUN)):
            mean: list[Value] = [0.0] * 8
            if start is not None:
                at = ops.address(start, self._t, 2 * _PIECE)
                words = [w for i in (0, 16) for w in ops.load4(at, 4 * first + i)]
                mean = [ops.from_bits(word) for word in words]
            for token, own in zip(tokens, sums, strict=True):
                bits = [b for word in token[number] for b in split_bfloat16(ops, word)]
                for i, (x, m) in enumerate(zip(bits, mean, strict=True)):
                    away = ops.fsub(ops.from_bits(x), m)
                    own[i % 2] = ops.fma(away, away, own[i % 2])
        return [warp_sum(ops, ops.fadd(*own), _SAME_TOKEN) for own in sums]

    def _measured(self, row: Value, tokens: list[list[list[Value]]]) -> list[Value]:
        """The square of A (x - mean) of each token of this lane's."""
        ops, spec = self._ops, self._spec
        begin = spec.tables["book"] * spec.row_bytes
        away = ops.pointer("away") if spec.centred else None

        def add(i: Value, sums: list[Value]) -> list[Value]:
            start: list[Value] = [0.0] * 2
            if away is not None:
                at = ops.address(ops.address(away, row, 4 * spec.head_dim), self._t, 8)
                start = ops.load_float2(ops.address(at, i, 4 * TILE), 0)
            rows = [ops.mad(i, TILE * spec.row_bytes, x) for x in self._rows]
            products = self._products(rows, begin, spec.head_dim, tokens, start)
            for j in range(4):
                for y in products[j // 2][2 * (j % 2) : 2 * (j % 2) + 2]:
                    sums[j] = ops.fma(y, y, sums[j])
            return sums

        sums = ops.loop(spec.head_dim // TILE, [0.0] * 4, add)
        return [warp_sum(ops, x, _SAME_TOKEN) for x in sums]

    def _nearest(self, tokens: list[list[list[Value]]]) -> tuple[list[Value], list[Value]]:
        """The least distance, less |x - mean|^2, and whose it is, of each token of this lane's."""
        ops, spec = self._ops, self._spec
        tiles = spec.centroids // TILE
        unroll = 1 if tiles % _UNROLL else _UNROLL
        bias = ops.mad(self._t, 8, self._biases)

        def compare(i: Value, carried: list[Value]) -> list[Value]:
            least, ids = carried[:4], carried[4:]
            rows = [ops.mad(i, unroll * TILE * spec.row_bytes, x) for x in self._rows]
            biases = ops.mad(i, 4 * unroll * TILE, bias)
            column = ops.mad(i, unroll * TILE, ops.mad(self._t, 2, 0))
            for tile in range(unroll):
                start = list(map(ops.from_bits, ops.load_shared2(biases, 4 * TILE * tile)))
                offset = tile * TILE * spec.row_bytes
                products = self._products(rows, offset, spec.centroids, tokens, start)
                for j in range(4):
                    for k in (0, 1):
                        found = products[j // 2][2 * (j % 2) + k]
                        number = ops.add(column, TILE * tile + k)
                        ids[j] = ops.where_float_less(found, least[j], number, ids[j])
                        least[j] = ops.fmin(found, least[j])
            return [*least, *ids]

        carried = ops.loop(tiles // unroll, [float("inf")] * 4 + [0] * 4, compare)
        joined = [self._join(*pair) for pair in zip(carried[:4], carried[4:], strict=True)]
        return [least for least, _ in joined], [number for _, number in joined]

    def _products(
        self,
        rows: list[Value],
        offset: int,
        count: int,
        tokens: list[list[list[Value]]],
        start: list[Value],
    ) -> list[list[Value]]:
        """Sums for tokens g, g + 8 and for g + 16, g + 24 with rows 2 t and 2 t + 1 of a table.

        Args:
            rows: addresses of even and of odd runs of channels. offset: from there on.
            count: rows from a half to the other. tokens: left operands. start: of the sums.
        """
        ops, spec = self._ops, self._spec
        sums = [start + start, start + start]
        for part in range(spec.halves):
            begin = offset + part * count * spec.row_bytes
            for number in range(spec.head_dim // _RUN):
                right = ops.load_shared4(rows[number % 2], begin + 64 * number)
                for half in (0, 2):
                    for m in (0, 1):
                        first, second = tokens[2 * m][number], tokens[2 * m + 1][number]
                        left = [first[half], second[half], first[half + 1], second[half + 1]]
                        sums[m] = ops.mma_bfloat16(left, right[half : half + 2], sums[m])
        return sums

    def _join(self, least: Value, number: Value) -> tuple[Value, Value]:
        """The least distance among the lanes of a token; the first number among equal distances."""
        ops = self._ops
        for bit in _SAME_TOKEN:
            other, theirs = exchange_float(ops, least, bit), ops.exchange(number, bit)
            first = ops.min(number, theirs)
            chosen = ops.where_float_less(least, other, number, first)
            number = ops.where_float_less(other, least, theirs, chosen)
            least = ops.fmin(least, other)
        return least, number
