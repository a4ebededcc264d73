"""The body of one thread block: visual tokens of a head gathered, made finite and summed up.

A warp takes 32 tokens, 16 bytes a lane, so that it reads and writes whole rows. Squares are of
distances to the head's first token: near enough to the mean that float32 has their difference.
"""

import dataclasses

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import exchange_float, split_bfloat16
from pallas_kernels.quantize.half_block import INFINITY, MAGNITUDE, PIECE

__all__ = ["CHUNK", "WARPS", "GatherKernel", "GatherSpec"]

WARPS = 8
CHUNK = 32 * WARPS  # tokens of a thread block
_AT_ONCE = 8  # pieces that a lane reads before it looks at the first


@dataclasses.dataclass(frozen=True)
class GatherSpec:
    """One launch: keys and values of one layer.

    Attributes:
        batch, tokens, kv_heads, head_dim: of the activations [B, T, K, H] in bfloat16.
        positions: V. largest: where elements saturate.
    """

    batch: int
    tokens: int
    kv_heads: int
    head_dim: int
    positions: int
    largest: float

    @property
    def heads(self) -> int:
        """KV heads of all sequences."""
        return self.batch * self.kv_heads

    @property
    def chunks(self) -> int:
        """Thread blocks of a head, of keys or of values."""
        return -(-self.positions // CHUNK)

    @property
    def grid(self) -> int:
        """Thread blocks."""
        return 2 * self.heads * self.chunks

    @property
    def shared_words(self) -> int:
        """Sums and squares of each warp."""
        return 2 * WARPS * self.head_dim


class GatherKernel:
    """`run()` does the work of one warp.

    Operands: key, value [B * T * K, H] bfloat16; position [B, 256 * chunks] int32, the token of
    each visual position, negative where there is none. Results, for rows of keys, then of values:
    x [2 * heads * V, H] bfloat16, 0 where there is no token and where one is not finite; sum and
    square [2 * heads, chunks, H] float32, of tokens and of what they are away from the first one;
    spoilt [2 * heads, chunks, 8] uint32, 1 where a warp met an element that is not finite.
    """

    def __init__(self, ops: Operations, spec: GatherSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        self._thread = ops.thread_index()
        self._lane = ops.bit_and(self._thread, 31)
        self._warp = ops.uniform(ops.shift_right(self._thread, 5))
        block = ops.block_index()  # heads of a token lie side by side: they come one after another
        self._kv_head = ops.rem(block, spec.kv_heads)
        rest = ops.div(block, spec.kv_heads)
        self._chunk, rest = ops.rem(rest, spec.chunks), ops.div(rest, spec.chunks)
        self._sequence, self._side = ops.rem(rest, spec.batch), ops.div(rest, spec.batch)
        side_row = ops.mad(self._side, spec.batch, self._sequence)
        self._row = ops.mad(side_row, spec.kv_heads, self._kv_head)
        self._pieces = 2 * spec.head_dim // PIECE

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        base = ops.mad(self._sequence, spec.chunks * CHUNK, 0)
        first = ops.load(ops.address(ops.pointer("position"), base, 4))
        place = ops.mad(self._chunk, CHUNK, ops.mad(self._warp, 32, self._lane))
        position = ops.load(ops.address(ops.pointer("position"), ops.add(base, place), 4))
        nothing = [0.0] * 16 + [0]
        found = ops.cond(
            ops.equal(self._side, 0),
            nothing,
            lambda _: self._gather("key", first, position),
            lambda _: self._gather("value", first, position),
        )
        self._store(found[:8], found[8:16], found[16])

    def _row_of(self, name: str, position: Value, piece: Value) -> Value:
        """The address of a piece of a token's activations."""
        ops, spec = self._ops, self._spec
        token = ops.mad(self._sequence, spec.tokens, ops.max(position, 0))
        row = ops.mad(token, spec.kv_heads, self._kv_head)
        base = ops.address(ops.pointer(name), row, 2 * spec.head_dim)
        return ops.address(base, piece, PIECE)

    def _gather(self, name: str, first: Value, position: Value) -> list[Value]:
        """Sums and squares of this lane's eight channels, and whether it met what is not finite."""
        ops, spec = self._ops, self._spec
        at_once = 32 // self._pieces
        own, piece = ops.div(self._lane, self._pieces), ops.rem(self._lane, self._pieces)
        shift, _ = self._finite(ops.load4(self._row_of(name, first, piece), 0), self._kept(first))
        sums: list[Value] = [0.0] * 8
        squares: list[Value] = [0.0] * 8
        spoilt: Value = 0
        start = ops.mad(self._row, spec.positions, ops.mad(self._chunk, CHUNK, 0))
        for batch in range(0, 32, _AT_ONCE * at_once):
            rows = [ops.add(own, batch + i * at_once) for i in range(_AT_ONCE)]
            rows = rows[: (32 - batch) // at_once]
            places = [ops.take(position, row) for row in rows]
            read = [ops.load4(self._row_of(name, place, piece), 0) for place in places]
            for row, place, words in zip(rows, places, read, strict=True):
                x, bad = self._finite(words, self._kept(place))
                spoilt = ops.max(spoilt, bad)
                inside = ops.mad(self._warp, 32, row)
                within = ops.mad(self._chunk, CHUNK, inside)
                exists = ops.where_less(within, spec.positions, 1, 0)
                base = ops.address(ops.pointer("x"), ops.add(start, inside), 2 * spec.head_dim)
                packed = [ops.pack_bfloat16(x[i], x[i + 1]) for i in range(0, 8, 2)]
                ops.store4(exists, ops.address(base, piece, PIECE), 0, packed)
                sums = [ops.fadd(total, v) for total, v in zip(sums, x, strict=True)]
                there = ops.where_less_float(place, 0, 0.0, 1.0)
                away = [ops.fmul(ops.fsub(v, s), there) for v, s in zip(x, shift, strict=True)]
                squares = [ops.fma(d, d, total) for d, total in zip(away, squares, strict=True)]
        return [*sums, *squares, spoilt]

    def _kept(self, position: Value) -> Value:
        """All bits, or none where there is no token."""
        return self._ops.where_less(position, 0, 0, 0xFFFFFFFF)

    def _finite(self, words: list[Value], kept: Value) -> tuple[list[Value], Value]:
        """The eight numbers of these words as they are coded, and whether one is not finite."""
        ops, largest = self._ops, self._spec.largest
        found, spoilt = [], 0
        for word in words:
            word = ops.bit_and(word, kept)
            for bits in split_bfloat16(ops, word):
                magnitude = ops.bit_and(bits, MAGNITUDE)
                x = ops.where_less_float(magnitude, INFINITY, ops.from_bits(bits), 0.0)
                spoilt = ops.where_less(magnitude, INFINITY, spoilt, 1)
                found.append(ops.fmin(ops.fmax(x, -largest), largest))
        return found, spoilt

    def _store(self, sums: list[Value], squares: list[Value], spoilt: Value) -> None:
        """Sums and squares of the thread block."""
        ops, spec = self._ops, self._spec
        size = 4 * spec.head_dim
        piece = ops.rem(self._lane, self._pieces)
        at = ops.mad(self._warp, 2 * size, ops.mad(piece, 32, ops.shared()))
        leads = ops.where_less(self._lane, self._pieces, 1, 0)
        bits = [bit for bit in (4, 8, 16) if bit >= self._pieces]
        for offset, values in ((0, sums), (size, squares)):
            for i, value in enumerate(values):
                for bit in bits:
                    value = ops.fadd(value, exchange_float(ops, value, bit))
                ops.store_shared(leads, at, offset + 4 * i, value)
        number = ops.mad(self._row, spec.chunks, self._chunk)
        warp = ops.mad(number, WARPS, self._warp)
        mark = ops.where_less(0, ops.ballot(spoilt), 1, ops.where_less(ops.ballot(spoilt), 0, 1, 0))
        ops.store(ops.equal(self._lane, 0), ops.address(ops.pointer("spoilt"), warp, 4), 0, mark)
        ops.barrier()
        exists = ops.where_less(self._thread, spec.head_dim, 1, 0)
        channel = ops.min(self._thread, spec.head_dim - 1)
        for name, offset in (("sum", 0), ("square", size)):
            at = ops.mad(channel, 4, ops.shared())
            total: Value = 0.0
            for warp in range(WARPS):
                total = ops.fadd(total, ops.load_shared(at, offset + 2 * size * warp))
            base = ops.address(ops.pointer(name), number, size)
            ops.store_float(exists, ops.address(base, channel, 4), 0, total)
