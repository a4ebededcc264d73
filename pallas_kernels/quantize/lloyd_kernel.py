"""The body of one thread block: one step of k-means for some tokens of a head.

A step is one launch. Its thread blocks first make their head's centres of the sums that the launch
before has found; then they assign their tokens, 256 of them, to these centres, and sum up the
tokens of each. Both are products of a tensor core:

| product | left | right |
|---|---|---|
| distances | 16 tokens x 16 channels | two halves of each centre in bfloat16, a column each |
| sums | 16 channels x 16 tokens, turned in registers | a one where a token is a centre's |

Tokens are read once and are numbers of bfloat16; sums are float32. The last launch assigns tokens
to the centres as they are stored, and says how far away they are.
"""

import dataclasses

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import dot, in_chains, of_lane_row, split_bfloat16, warp_sum

__all__ = ["CHUNK", "MOST_CENTRES", "WARPS", "LloydKernel", "LloydSpec"]

WARPS = 8
CHUNK = 32 * WARPS  # tokens of a thread block
MOST_CENTRES = 4  # two halves of each are the columns of a tile
_ROWS = 16  # of a tile
_PIECE = 16  # bytes that a lane copies at once
_PARTS = 8  # of sums that are read at once
_NOBODY = 7  # centre of a token that there is not
_LARGEST_ORDER = 0x7FFFFFF0


@dataclasses.dataclass(frozen=True)
class LloydSpec:
    """One launch.

    Attributes:
        heads: of all sequences, of keys and values. positions: V. head_dim: H, 64 or 128.
        centres: M, up to 4. last: assigns tokens to centres as they are stored, without sums.
    """

    heads: int
    positions: int
    head_dim: int
    centres: int
    last: bool = False

    @property
    def chunks(self) -> int:
        """Thread blocks of a head."""
        return -(-self.positions // CHUNK)

    @property
    def row_bytes(self) -> int:
        """Bytes of a token of a head."""
        return 2 * self.head_dim

    @property
    def stride(self) -> int:
        """Bytes from row to row in shared memory: what eight lanes read lies in other banks."""
        return self.row_bytes + _PIECE

    @property
    def rows_bytes(self) -> int:
        """Shared memory of rows, later of the sums of each warp."""
        return max(CHUNK * self.stride, 4 * WARPS * MOST_CENTRES * self.head_dim)

    @property
    def table_stride(self) -> int:
        """Bytes from centre to centre in shared memory, in float32."""
        return 4 * self.head_dim + _PIECE

    @property
    def shared_words(self) -> int:
        """Shared memory: rows, halves of centres, their squares, counts; centres and units."""
        rows = self.rows_bytes + 2 * MOST_CENTRES * self.stride
        tables = (MOST_CENTRES + 1) * self.table_stride if self.last else 0
        return (rows + tables) // 4 + MOST_CENTRES * (1 + WARPS)


class LloydKernel:
    """`run()` does the work of one warp.

    Operands: x [heads * V, H] bfloat16, finite; length [heads] int32, tokens of each, from the
    first position on; unit [heads, H] float32, 1 / unit of each channel; old [heads, M, H] float32,
    the centres of the step before; sum [heads, chunks, M, H] float32 and count [heads, chunks, M]
    float32, what that step has found for them: where all counts of a centre are 0, it stays.
    Results: centre [heads, M, H], of this step; found and size, the next sum and count. Of the last
    launch: centre, as bfloat16 has it; ids [heads * V] int32, the nearest centre of each token; and
    energy [heads * V] float32, |x / unit - centre|^2, 0 where there is no token.
    """

    def __init__(self, ops: Operations, spec: LloydSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        self._thread = ops.thread_index()
        self._lane = ops.bit_and(self._thread, 31)
        self._warp = ops.uniform(ops.shift_right(self._thread, 5))
        block = ops.block_index()
        self._head, self._chunk = ops.div(block, spec.chunks), ops.rem(block, spec.chunks)
        self._block = block
        self._g, self._t = ops.shift_right(self._lane, 2), ops.bit_and(self._lane, 3)
        self._rows = ops.shared()
        self._halves = ops.add(self._rows, spec.rows_bytes)
        self._squares = ops.add(self._halves, 2 * MOST_CENTRES * spec.stride)
        self._counts = ops.add(self._squares, 4 * MOST_CENTRES)
        self._tables = ops.add(self._counts, 4 * MOST_CENTRES * WARPS)
        length = ops.load(ops.address(ops.pointer("length"), self._head, 4))
        self._left = ops.sub(length, ops.mad(self._chunk, CHUNK, 0))  # tokens from here on

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        self._copy_rows()
        ops.cond(ops.where_less(self._warp, spec.centres, 1, 0), [], self._put_centre)
        ops.wait_for_copies()
        ops.barrier()
        if spec.last:
            self._assign()
            return
        sums, count = self._sums()
        ops.barrier()  # the rows are read: sums take their place
        self._store(sums, count)

    def _copy_rows(self) -> None:
        """This warp's 32 rows to shared memory; of positions behind the last that one."""
        ops, spec = self._ops, self._spec
        pieces = spec.row_bytes // _PIECE
        at_once = 32 // pieces
        row, piece = ops.div(self._lane, pieces), ops.rem(self._lane, pieces)
        first = ops.mad(self._chunk, CHUNK, ops.mad(self._warp, 32, row))
        target = ops.mad(ops.mad(self._warp, 32, row), spec.stride, self._rows)
        target = ops.mad(piece, _PIECE, target)
        start = ops.address(ops.pointer("x"), piece, _PIECE)
        base = ops.mad(self._head, spec.positions, 0)
        for i in range(0, 32, at_once):
            position = ops.min(ops.add(first, i), spec.positions - 1)
            address = ops.address(start, ops.add(base, position), spec.row_bytes)
            ops.copy_to_shared(target, i * spec.stride, address)
        ops.group_copies()

    def _put_centre(self, _: list[Value]) -> list[Value]:
        """The centre of this warp's number: stored, and its halves and square for all warps."""
        ops, spec = self._ops, self._spec
        each = spec.head_dim // 32
        row = ops.mad(self._head, spec.centres, self._warp)

        def channels(name: str, row: Value) -> list[Value]:
            base = ops.address(ops.pointer(name), row, 4 * spec.head_dim)
            address = ops.address(base, self._lane, 4 * each)
            return [ops.load_float(address, 4 * i) for i in range(each)]

        def add(i: Value, found: list[Value]) -> list[Value]:
            numbers = [ops.mad(i, _PARTS, j) for j in range(_PARTS)]
            read = []  # all of them, before the first is waited for
            for number in numbers:
                chunk = ops.mad(self._head, spec.chunks, ops.min(number, spec.chunks - 1))
                part = ops.mad(chunk, spec.centres, self._warp)
                size = ops.load_float(ops.address(ops.pointer("count"), part, 4))
                read.append([*channels("sum", part), size])
            for number, part in zip(numbers, read, strict=True):
                exists = ops.where_less(number, spec.chunks, 1, 0)
                part = [ops.where_less_float(0, exists, value, 0.0) for value in part]
                found = [ops.fadd(a, b) for a, b in zip(found, part, strict=True)]
            return found

        old, unit = channels("old", row), channels("unit", self._head)
        batches = -(-spec.chunks // _PARTS)
        *sums, size = ops.loop(batches, [0.0] * (each + 1), add)
        share = ops.reciprocal(ops.fmax(size, 1.0))
        some = ops.as_bits(size)  # a float of at least 0: as a word above 0 where it is
        moved = [ops.fmul(ops.fmul(s, u), share) for s, u in zip(sums, unit, strict=True)]
        centre = [
            ops.where_less_float(0, some, new, before)
            for new, before in zip(moved, old, strict=True)
        ]
        if spec.last:
            centre = [self._rounded(value) for value in centre]
            at = ops.mad(self._lane, 4 * each, ops.mad(self._warp, spec.table_stride, self._tables))
            behind = ops.add(self._tables, MOST_CENTRES * spec.table_stride)
            at_unit = ops.mad(self._lane, 4 * each, behind)
            for i, (c, u) in enumerate(zip(centre, unit, strict=True)):
                ops.store_shared(1, at, 4 * i, c)
                ops.store_shared(ops.equal(self._warp, 0), at_unit, 4 * i, u)
        base = ops.address(ops.pointer("centre"), row, 4 * spec.head_dim)
        address = ops.address(base, self._lane, 4 * each)
        for i, value in enumerate(centre):
            ops.store_float(ops.equal(self._chunk, 0), address, 4 * i, value)
        square = warp_sum(ops, dot(ops, centre, centre))
        ops.store_shared(ops.equal(self._lane, 0), ops.mad(self._warp, 4, self._squares), 0, square)
        scaled = [ops.fmul(c, u) for c, u in zip(centre, unit, strict=True)]
        upper = [self._rounded(value) for value in scaled]
        lower = [ops.fsub(a, b) for a, b in zip(scaled, upper, strict=True)]
        at = ops.mad(self._warp, 2 * spec.stride, self._halves)
        at = ops.mad(self._lane, 2 * each, at)
        for half, offset in ((upper, 0), (lower, spec.stride)):
            for i in range(0, each, 2):
                word = ops.from_bits(ops.pack_bfloat16(half[i], half[i + 1]))
                ops.store_shared(1, at, offset + 2 * i, word)
        return []

    def _rounded(self, value: Value) -> Value:
        """A float as bfloat16 has it."""
        ops = self._ops
        return ops.from_bits(ops.shift_left(ops.pack_bfloat16(value, 0.0), 16))

    def _centres(self) -> tuple[list[list[Value]], Value]:
        """Right operands of distances by 16 channels, and the square of centre t."""
        ops, spec = self._ops, self._spec
        column = ops.mad(self._g, spec.stride, ops.mad(self._t, 4, self._halves))
        right = [
            [ops.as_bits(ops.load_shared(column, 32 * k + half)) for half in (0, 16)]
            for k in range(spec.head_dim // 16)
        ]
        return right, ops.load_shared(ops.mad(self._t, 4, self._squares), 0)

    def _tile(
        self, tile: int, right: list[list[Value]], square: Value
    ) -> tuple[list[list[Value]], list[Value]]:
        """Left operands of 16 of this warp's tokens, and the centres of tokens g and g + 8."""
        ops, spec = self._ops, self._spec
        row = ops.mad(self._warp, 32, ops.add(self._g, tile))
        at = ops.mad(row, spec.stride, ops.mad(self._t, 4, self._rows))
        left = [
            [
                ops.as_bits(ops.load_shared(at, 32 * k + half + rows * spec.stride))
                for half in (0, 16)
                for rows in (0, 8)
            ]
            for k in range(spec.head_dim // 16)
        ]
        products: list[Value] = [0.0] * 4
        for words, centres in zip(left, right, strict=True):
            products = ops.mma_bfloat16(words, centres, products)
        return left, [self._nearest(square, products, i) for i in (0, 1)]

    def _assign(self) -> None:
        """Centre and energy of each token, a lane one."""
        ops, spec = self._ops, self._spec
        right, square = self._centres()
        tiles = [self._tile(tile, right, square) for tile in range(0, 32, _ROWS)]
        own = of_lane_row(ops, self._lane, [number for _, ids in tiles for number in ids])
        centre = ops.mad(own, spec.table_stride, self._tables)
        unit = ops.add(self._tables, MOST_CENTRES * spec.table_stride)
        row = ops.mad(self._thread, spec.stride, self._rows)
        sums: list[Value] = [0.0] * 8
        for first in range(0, spec.head_dim, 8):
            x = [
                ops.from_bits(bits)
                for word in ops.load_shared4(row, 2 * first)
                for bits in split_bfloat16(ops, word)
            ]
            units, centres = (
                [
                    ops.from_bits(word)
                    for offset in (0, 16)
                    for word in ops.load_shared4(at, 4 * first + offset)
                ]
                for at in (unit, centre)
            )
            for i, (v, u, c) in enumerate(zip(x, units, centres, strict=True)):
                away = ops.fsub(ops.fmul(v, u), c)
                sums[i] = ops.fma(away, away, sums[i])
        valid = ops.where_less(self._thread, self._left, 1, 0)
        energy = ops.where_less_float(0, valid, in_chains(ops.fadd, sums), 0.0)
        position = ops.mad(self._chunk, CHUNK, self._thread)
        exists = ops.where_less(position, spec.positions, 1, 0)
        place = ops.mad(self._head, spec.positions, position)
        ops.store(exists, ops.address(ops.pointer("ids"), place, 4), 0, own)
        ops.store_float(exists, ops.address(ops.pointer("energy"), place, 4), 0, energy)

    def _sums(self) -> tuple[list[list[Value]], Value]:
        """Sums of this warp's tokens by 16 channels, and in lane t how many are centre t's.

        Lane 4 g + t has sums of channels g and g + 8 for centres 2 t and 2 t + 1.
        """
        ops, spec = self._ops, self._spec
        right, square = self._centres()
        tiles = range(spec.head_dim // 16)
        sums: list[list[Value]] = [[0.0] * 4 for _ in tiles]
        count: Value = 0
        for tile in range(0, 32, _ROWS):
            left, nearest = self._tile(tile, right, square)
            row = ops.mad(self._warp, 32, ops.add(self._g, tile))
            ids = [
                ops.where_less(ops.add(row, 8 * i), self._left, number, _NOBODY)
                for i, number in enumerate(nearest)
            ]
            for number in ids:
                count = ops.add(count, ops.equal(number, self._t))
            members = self._members(ids)
            for k in tiles:
                # [token, channel] to [channel, token]: each quarter, and the quarters.
                turned = [ops.transpose_halves(left[k][i]) for i in (0, 2, 1, 3)]
                sums[k] = ops.mma_bfloat16(turned, members, sums[k])
        for bit in (4, 8, 16):
            count = ops.add(count, ops.exchange(count, bit))
        return sums, count

    def _nearest(self, square: Value, products: list[Value], i: int) -> Value:
        """The nearest centre of token g (+ 8, for i = 1); lane t has the product with centre t.

        A distance and its centre are one word, in which the centre takes the last two bits.
        """
        ops = self._ops
        product = ops.fadd(products[2 * i], products[2 * i + 1])
        bits = ops.as_bits(ops.fma(product, -2.0, square))
        ordered = ops.bit_xor(bits, ops.bit_and(ops.shift_right_signed(bits, 31), 0x7FFFFFFF))
        word = ops.mad(ops.shift_right_signed(ordered, 2), 4, self._t)
        word = ops.where_less(self._t, self._spec.centres, word, _LARGEST_ORDER)
        for bit in (1, 2):
            word = ops.min(word, ops.exchange(word, bit))
        return ops.bit_and(word, 3)

    def _members(self, ids: list[Value]) -> list[Value]:
        """The right operand of sums: rows 2 t, 2 t + 1 (+ 8) are tokens, column g is a centre."""
        ops = self._ops
        first = ops.mad(self._t, 8, 0)
        words = []
        for number in ids:
            ones = [ops.equal(ops.take(number, ops.add(first, 4 * i)), self._g) for i in (0, 1)]
            words.append(ops.mad(ones[1], 0x3F800000, ops.mad(ones[0], 0x3F80, 0)))
        return words

    def _store(self, sums: list[list[Value]], count: Value) -> None:
        """Adds up the sums and counts of the warps, and writes them."""
        ops, spec = self._ops, self._spec
        size = 4 * spec.head_dim
        at = ops.mad(self._warp, MOST_CENTRES * size, ops.mad(self._g, 4, self._rows))
        at = ops.mad(self._t, 2 * size, at)
        inside = ops.where_less(self._t, MOST_CENTRES // 2, 1, 0)
        for k, tile in enumerate(sums):
            for i, value in enumerate(tile):
                rows, column = divmod(i, 2)
                ops.store_shared(inside, at, column * size + 4 * (16 * k + 8 * rows), value)
        inside = ops.where_less(self._lane, MOST_CENTRES, 1, 0)
        here = ops.mad(self._warp, 4 * MOST_CENTRES, ops.mad(self._t, 4, self._counts))
        ops.store_shared(inside, here, 0, ops.to_float(count))
        ops.barrier()
        row = ops.mad(self._block, spec.centres * spec.head_dim, 0)
        for first in range(0, spec.centres * spec.head_dim, 32 * WARPS):
            number = ops.add(self._thread, first)
            exists = ops.where_less(number, spec.centres * spec.head_dim, 1, 0)
            at = ops.mad(ops.min(number, MOST_CENTRES * spec.head_dim - 1), 4, self._rows)
            parts = [ops.load_shared(at, MOST_CENTRES * size * w) for w in range(WARPS)]
            self._put("found", exists, ops.add(row, number), parts)
        exists = ops.where_less(self._thread, spec.centres, 1, 0)
        at = ops.mad(ops.bit_and(self._thread, 3), 4, self._counts)
        parts = [ops.load_shared(at, 4 * MOST_CENTRES * w) for w in range(WARPS)]
        self._put("size", exists, ops.mad(self._block, spec.centres, self._thread), parts)

    def _put(self, name: str, exists: Value, place: Value, parts: list[Value]) -> None:
        ops = self._ops
        total = parts[0]
        for part in parts[1:]:
            total = ops.fadd(total, part)
        ops.store_float(exists, ops.address(ops.pointer(name), place, 4), 0, total)
