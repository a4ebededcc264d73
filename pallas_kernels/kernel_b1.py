"""Decode attention over 1-bit keys and values with the tensor core's 1-bit instructions.

One row (a query of one KV head) is worked on by `warps_per_row` warps, each over its own blocks of
256 positions; no warp waits for another before the end. For each block:

1. *scores.* Key words go to the tensor core as they were loaded. The query, scales folded in, is
   24-bit fixed point, as bit planes. Lane 4 g + t gets the scores of positions 32 i + 8 t + g.
2. *softmax.* Relative to the block's own maximum, so that a sink elsewhere costs no precision. A
   scale per position of the values is folded in here; then 15-bit fixed point, as bit planes.
3. *values.* Value words go to the tensor core as they were loaded. Lane 4 g + t gets channels
   64 h + 16 t + 8 r + g.

Blocks that share all tables form a chunk: the query's planes are made anew for each, and levels of
values are applied to its sums. Scores are in units of log2 throughout.

    s[t] = q . lower + sum_i (q_i (upper_i - lower_i)) code[t, i]                       level codes
    s[t] = q . centre + a[t] (2 sum_i (R q)_i code[t, i] - sum_i (R q)_i - kappa a[t])   sign codes
"""

import functools
import math
from collections.abc import Sequence

from pallas_kernels.bit_planes import COUNT_UNIT, BitPlanes
from pallas_kernels.layouts import BLOCK
from pallas_kernels.operations import Operations, Value
from pallas_kernels.problem import Coding, Problem

__all__ = ["KernelB1"]

_MAX = 32767.0  # of weights in fixed point
_LOWEST = -1e30  # a score that no position has; finite, so that differences are
_TO_INT = 2.0**23  # added to a float below 2^22, it rounds it and leaves the integer in its bits
_TO_INT_BITS = 0x4B000000


class KernelB1:
    """The body of one thread block; `run()` does it all.

    Operands: query [rows, H] float32, times logits_scale * log2(e); key, value: words in blocks;
    length [batch]; for level codes {key,value}_{lower,upper} [B * K, G, H] bfloat16, for sign codes
    {key,value}_centre [B * K, H] bfloat16 and {key,value}_scale: words in blocks. Results: output
    [rows * splits, H] and logsumexp [rows * splits] (natural), float32.
    """

    def __init__(self, ops: Operations, problem: Problem):
        """Finds out which part of the work is this warp's."""
        self.ops, self.problem, tiling = ops, problem, problem.tiling
        thread = ops.thread_index()
        self.lane = ops.bit_and(thread, 31)
        self.warp = ops.uniform(ops.shift_right(thread, 5))
        t, g = ops.bit_and(self.lane, 3), ops.shift_right(self.lane, 2)
        self.place = ops.mad(t, 8, g)  # of this lane's positions in 32, of its query channels too
        self.channel = ops.mad(t, 16, g)  # of its output: 64 h + 16 t + 8 r + g
        self.planes = BitPlanes(ops, self.lane)

        team = ops.div(self.warp, tiling.warps_per_row)
        self.member = ops.rem(self.warp, tiling.warps_per_row)
        self.slot = ops.mad(ops.block_index(), problem.rows_per_block, team)
        self.row = ops.div(self.slot, tiling.splits)
        self.head = ops.div(self.row, problem.queries)  # batch * K + KV head
        batch = ops.div(self.head, problem.kv_heads)
        self.length = ops.uniform(ops.load(ops.address(ops.pointer("length"), batch, 4)))

        # Blocks [first, last): an equal share of those that hold anything.
        parts = tiling.splits * tiling.warps_per_row
        part = ops.rem(self.slot, tiling.splits)
        part = ops.mad(part, tiling.warps_per_row, self.member)
        blocks = ops.div(ops.add(self.length, BLOCK - 1), BLOCK)
        self.first = ops.div(ops.mad(blocks, part, 0), parts)
        self.last = ops.div(ops.mad(blocks, part, blocks), parts)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, problem = self.ops, self.problem
        size = problem.chunk_blocks
        self._load_query()
        first_chunk = ops.div(self.first, size)
        chunks = ops.sub(ops.div(ops.add(self.last, size - 1), size), first_chunk)
        chunks = ops.where_less(self.first, self.last, chunks, 0)

        def chunk(i, carried):
            block, *rest = carried
            ahead, total = rest[: self._ahead], rest[self._ahead :]
            number = ops.add(first_chunk, i)
            query = self._fold_query(block)
            stop = ops.min(self.last, ops.mad(number, size, size))
            _, *rest = ops.loop(
                ops.sub(stop, block),
                [block, *ahead, *self._empty()],
                lambda _, carried: self._block(query, carried),
            )
            ahead, sums = rest[: self._ahead], rest[self._ahead :]
            return [stop, *ahead, *self._add_chunk(total, sums, query, block)]

        ahead = self._load_keys(self.first)
        self._ahead = len(ahead)
        empty = [_LOWEST, 0.0] + [0.0] * (problem.head_dim // 32)
        result = ops.loop(chunks, [self.first, *ahead, *empty], chunk)
        self._merge(result[1 + self._ahead :])

    # The query ------------------------------------------------------------------------------------

    def _load_query(self) -> None:
        """This lane's channels 32 k + 8 t + g of the query, rotated where the keys are."""
        ops, problem = self.ops, self.problem
        address = ops.address(ops.pointer("query"), self.row, 4 * problem.head_dim)
        address = ops.address(address, self.place, 4)
        query = [ops.load_float(address, 128 * k) for k in range(problem.head_dim // 32)]
        self.centre_score = self.query_sum = self.kappa = 0.0
        if problem.key.signs:
            centre = self._table("key_centre", problem.key, None, self.place, self._strided)
            self.centre_score = self._warp_sum(self._dot(query, centre))
            square = self._warp_sum(self._dot(query, query))
            # |q|^2 / log2(e)^2 times the factor, in units of log2: times log2(e).
            self.kappa = ops.fmul(square, problem.key.score_error_factor / math.log2(math.e))
            if problem.key.rotated:
                query = self._rotate(query)
            self.query_sum = self._warp_sum(functools.reduce(ops.fadd, query))
        self.query = query

    def _fold_query(self, block: Value) -> tuple:
        """Planes of the query for one chunk, what a count is worth, and the chunk's own score."""
        ops, problem = self.ops, self.problem
        query, offset = self.query, 0.0
        if not problem.key.signs:
            lower, upper = (
                self._table(f"key_{name}", problem.key, block, self.place, self._strided)
                for name in ("lower", "upper")
            )
            offset = self._warp_sum(self._dot(query, lower))
            query = [
                ops.fmul(q, ops.fsub(high, low))
                for q, low, high in zip(query, lower, upper, strict=True)
            ]
        largest = functools.reduce(
            ops.max, [ops.bit_and(ops.as_bits(q), 0x7FFFFFFF) for q in query]
        )
        largest = ops.fmax(ops.from_bits(ops.warp_max(largest)), 1e-30)
        num_bytes = problem.tiling.query_bytes
        greatest = 2.0 ** (8 * num_bytes - 1) * (1 - 2.0**-15)  # rounding stays within the range
        factor = ops.fmul(ops.reciprocal(largest), greatest)
        numbers = [ops.to_int(ops.fmul(q, factor)) for q in query]
        if problem.head_dim == 128:
            planes = [self.planes.split(numbers, num_bytes)] * 2
        else:  # even positions lie in the words of lanes t = 0, 1, odd ones in those of t = 2, 3
            both = self.planes.split(numbers * 2, num_bytes)
            t = ops.bit_and(self.lane, 3)
            planes = [
                [ops.where_less(t, 2, word, 0) for word in both],
                [ops.where_less(t, 2, 0, word) for word in both],
            ]
        unit = 256.0 ** (num_bytes - 2) / (greatest * COUNT_UNIT)
        return planes, ops.fmul(largest, unit), offset

    # One block ------------------------------------------------------------------------------------

    def _empty(self) -> list[Value]:
        """Sums over no block: maximum, sum of p, sum of p times scale, channels."""
        return [_LOWEST, 0.0, 0.0] + [0.0] * (self.problem.head_dim // 32)

    def _block(self, query: tuple, carried: list[Value]) -> list[Value]:
        """One block: its keys are in registers, those of the next are on their way when it ends."""
        ops = self.ops
        block, *rest = carried
        ahead, sums = rest[: self._ahead], rest[self._ahead :]
        words = self._load_words("value", block)
        value_scales = self._load_scales("value", self.problem.value, block)
        scores = self._scores(query, ahead)
        following = ops.add(block, 1)
        ahead = self._load_keys(ops.min(following, ops.sub(self.last, 1)))
        scores = self._hide_padding(block, scores)
        return [following, *ahead, *self._add_block(sums, scores, words, value_scales)]

    def _load_keys(self, block: Value) -> list[Value]:
        """Words and scales of a block of keys, flat."""
        scales = self._load_scales("key", self.problem.key, block)
        return [*self._load_words("key", block), *scales]

    def _load_words(self, name: str, block: Value) -> list[Value]:
        """This lane's words of a block: 4 of each row."""
        ops, problem = self.ops, self.problem
        number = ops.mad(self.head, problem.blocks, block)
        address = ops.address(ops.pointer(name), number, problem.block_bytes)
        address = ops.address(address, self.lane, 16)
        rows = range(problem.head_dim // 16)
        return [word for row in rows for word in ops.load4(address, 512 * row)]

    def _load_scales(self, name: str, coding: Coding, block: Value) -> list[Value]:
        """This lane's words of a block's scales; none for level codes."""
        ops, problem = self.ops, self.problem
        if not coding.signs:
            return []
        number = ops.mad(self.head, problem.blocks, block)
        address = ops.address(ops.pointer(f"{name}_scale"), number, BLOCK * coding.scale_bits // 8)
        address = ops.address(address, self.lane, coding.scale_bits)
        return (ops.load2 if coding.scale_bits == 8 else ops.load4)(address, 0)

    def _scores(self, query: tuple, keys: list[Value]) -> list[Value]:
        """Scores of positions 32 i + 8 t + g, i in 0..7, less what all positions share."""
        ops, problem = self.ops, self.problem
        planes, unit, _ = query
        words = keys[: problem.head_dim // 4]
        sums = []
        for k in range(4):
            tiles = []
            for quarter in range(4):
                if problem.head_dim == 128:
                    at = 4 * (2 * k + quarter // 2) + 2 * (quarter % 2)
                else:
                    at = 4 * k + 2 * (quarter // 2)
                rows = words[at : at + 2]
                tiles.append([ops.mma_b1_k128(rows, plane) for plane in planes[quarter % 2]])
            sums += self.planes.weigh(tiles)
        if not problem.key.signs:
            return [ops.fmul(x, unit) for x in sums]
        scales = self._decode_scales(keys[len(words) :], problem.key)
        twice, less = ops.fmul(unit, 2.0), ops.fsub(0.0, self.query_sum)
        scores = [ops.fma(x, twice, less) for x in sums]
        if problem.key.score_error_factor:
            minus = ops.fsub(0.0, self.kappa)
            scores = [ops.fma(a, minus, s) for a, s in zip(scales, scores, strict=True)]
        return [ops.fmul(a, s) for a, s in zip(scales, scores, strict=True)]

    def _hide_padding(self, block: Value, scores: list[Value]) -> list[Value]:
        """Scores from `length` on are lowered so far that their weight is 0."""
        ops = self.ops
        left = ops.sub(self.length, ops.mad(block, BLOCK, 0))  # positions from the block's first

        def hide(scores):
            mine = ops.sub(left, self.place)
            return [
                ops.where_less_float(32 * i, mine, score, _LOWEST) for i, score in enumerate(scores)
            ]

        return ops.cond(ops.where_less(left, BLOCK, 1, 0), scores, hide)

    def _add_block(self, sums, scores, words, value_scales) -> list[Value]:
        """Softmax relative to the block's maximum, the product with the values, the new sums."""
        ops, problem = self.ops, self.problem
        highest, mass, scaled_mass, *channels = sums
        top = self._warp_max_float(functools.reduce(ops.fmax, scores))
        weights = [ops.exp2(ops.fsub(s, top)) for s in scores]
        block_mass, largest, factor = 0.0, 1.0, _MAX
        if problem.value.signs:
            block_mass = functools.reduce(ops.fadd, weights)
            scales = self._decode_scales(value_scales, problem.value)
            weights = [ops.fmul(w, a) for w, a in zip(weights, scales, strict=True)]
            bits = ops.warp_max(ops.as_bits(functools.reduce(ops.fmax, weights)))
            largest = ops.fmax(ops.from_bits(bits), 1e-30)
            factor = ops.fmul(ops.reciprocal(largest), _MAX)
        numbers = [ops.as_bits(ops.fma(w, factor, _TO_INT)) for w in weights]
        total = functools.reduce(ops.add, numbers)
        total = ops.to_float(ops.sub(total, 8 * _TO_INT_BITS & 0xFFFFFFFF))
        products = self._values(words, numbers)

        new_highest = ops.fmax(highest, top)
        old, new = (ops.exp2(ops.fsub(x, new_highest)) for x in (highest, top))
        unit = ops.fmul(ops.fmul(new, largest), 1.0 / _MAX)
        if problem.value.signs:
            mass = ops.fma(block_mass, new, ops.fmul(mass, old))
            scaled_mass = ops.fma(total, unit, ops.fmul(scaled_mass, old))
        else:  # of the rounded weights, so that they sum to one
            mass = ops.fma(total, unit, ops.fmul(mass, old))
        count = ops.fmul(unit, 1.0 / COUNT_UNIT)
        channels = [
            ops.fma(x, count, ops.fmul(sum, old)) for x, sum in zip(products, channels, strict=True)
        ]
        return [new_highest, mass, scaled_mass, *channels]

    def _values(self, words: list[Value], numbers: list[Value]) -> list[Value]:
        """Sums over the block's positions of number times code, for this lane's channels."""
        ops = self.ops
        halves = (self.planes.split(part, 2) for part in (numbers[:4], numbers[4:]))
        planes = list(zip(*halves, strict=True))
        sums = []
        for h in range(self.problem.head_dim // 64):
            tiles = []
            for quarter in range(4):
                at = 4 * (4 * h + quarter)
                tiles.append([ops.mma_b1_k256(words[at : at + 4], plane) for plane in planes])
            sums += self.planes.weigh(tiles)
        return sums

    # Chunks and the end ---------------------------------------------------------------------------

    def _add_chunk(self, total, sums, query, block) -> list[Value]:
        """Decodes a chunk's sums and adds them to the warp's: maximum, mass, channels."""
        ops, problem = self.ops, self.problem
        highest, mass, *channels = total
        top, chunk_mass, scaled_mass, *products = sums
        top = ops.fadd(top, query[2])
        chunk_mass = self._warp_sum(chunk_mass)
        if problem.value.signs:
            less = ops.fsub(0.0, self._warp_sum(scaled_mass))
            values = [ops.fma(x, 2.0, less) for x in products]
        else:
            lower, upper = (
                self._table(f"value_{name}", problem.value, block, self.channel, self._paired)
                for name in ("lower", "upper")
            )
            values = [
                ops.fma(x, ops.fsub(high, low), ops.fmul(chunk_mass, low))
                for x, low, high in zip(products, lower, upper, strict=True)
            ]
        new_highest = ops.fmax(highest, top)
        old, new = (ops.exp2(ops.fsub(x, new_highest)) for x in (highest, top))
        mass = ops.fma(chunk_mass, new, ops.fmul(mass, old))
        channels = [
            ops.fma(x, new, ops.fmul(sum, old)) for x, sum in zip(values, channels, strict=True)
        ]
        return [new_highest, mass, *channels]

    def _merge(self, total: list[Value]) -> None:
        """Joins the warps of a row through shared memory; the first of them writes the result."""
        ops, problem = self.ops, self.problem
        highest, mass, *channels = total
        stride = 4 * problem.merge_row
        mine = ops.mad(self.warp, stride, ops.shared())
        at = ops.mad(self.channel, 4, mine)
        for offset, x in zip(self._paired(), channels, strict=True):
            ops.store_shared(at, 4 * offset, x)
        # Behind the channels: the maximum from lane 0, the mass from the others.
        both = ops.where_less_float(self.lane, 1, highest, mass)
        ops.store_shared(ops.mad(self.lane, 4, mine), 4 * problem.head_dim, both)
        ops.barrier()

        def write(_):
            team = range(problem.tiling.warps_per_row)
            tail = 4 * problem.head_dim
            tops = [ops.load_shared(mine, stride * w + tail) for w in team]
            masses = [ops.load_shared(mine, stride * w + tail + 4) for w in team]
            top = functools.reduce(ops.fmax, tops)
            shares = [ops.exp2(ops.fsub(x, top)) for x in tops]
            mass = self._dot(masses, shares)
            normalize = ops.reciprocal(ops.fmax(mass, 1e-30))
            at = ops.mad(self.lane, 4, mine)
            output = []
            for k in range(problem.head_dim // 32):
                parts = [ops.load_shared(at, stride * w + 128 * k) for w in team]
                output.append(ops.fmul(self._dot(parts, shares), normalize))
            if problem.value.signs:
                if problem.value.rotated:
                    output = self._rotate(output)
                centre = self._table("value_centre", problem.value, None, self.lane, self._strided)
                output = [ops.fadd(x, c) for x, c in zip(output, centre, strict=True)]
            address = ops.address(ops.pointer("output"), self.slot, 4 * problem.head_dim)
            address = ops.address(address, self.lane, 4)
            for k, x in enumerate(output):
                ops.store_float(1, address, 128 * k, x)
            score = ops.fadd(ops.fadd(top, ops.log2(mass)), self.centre_score)
            ops.store_float(
                ops.where_less(self.lane, 1, 1, 0),
                ops.address(ops.pointer("logsumexp"), self.slot, 4),
                0,
                ops.fmul(score, math.log(2.0)),
            )
            return []

        ops.cond(ops.where_less(self.member, 1, 1, 0), [], write)

    # Pieces ---------------------------------------------------------------------------------------

    def _strided(self) -> list[int]:
        """Channels of a lane that start at lane or place: every 32nd."""
        return [32 * k for k in range(self.problem.head_dim // 32)]

    def _paired(self) -> list[int]:
        """Channels of a lane that start at `channel`: 64 h + 8 r."""
        return [64 * h + 8 * r for h in range(self.problem.head_dim // 64) for r in (0, 1)]

    def _table(self, name, coding: Coding, block, start: Value, offsets) -> list[Value]:
        """Entries of a bfloat16 table [B * K, G, H] for this lane's channels, as floats."""
        ops, problem = self.ops, self.problem
        row = self.head
        if coding.groups > 1:
            row = ops.mad(row, coding.groups, ops.div(block, coding.group_blocks))
        address = ops.address(ops.pointer(name), row, 2 * problem.head_dim)
        address = ops.address(address, start, 2)
        halves = [ops.load_half(address, 2 * offset) for offset in offsets()]
        return [ops.from_bits(ops.shift_left(half, 16)) for half in halves]

    def _decode_scales(self, words: Sequence[Value], coding: Coding) -> list[Value]:
        """The eight scales of this lane as floats, from bfloat16 or `vkq_jax.log_scale`."""
        ops = self.ops
        scales = []
        for i in range(8):
            word = words[i * coding.scale_bits // 32]
            if coding.scale_bits == 16:
                bits = ops.bit_and(word, 0xFFFF0000) if i % 2 else ops.shift_left(word, 16)
                scales.append(ops.from_bits(bits))
            else:  # 2^((code - 128) / 8); code 0 is 0
                bits = ops.bytes(word, _TO_INT_BITS, 0x7540 + i % 4)
                power = ops.fma(ops.from_bits(bits), 1 / 8, -(_TO_INT + 128) / 8)
                zero = _TO_INT_BITS + 1
                scales.append(ops.where_less_float(bits, zero, 0.0, ops.exp2(power)))
        return scales

    def _rotate(self, x: list[Value]) -> list[Value]:
        """The orthonormal Hadamard rotation of a vector whose channels are 32 k + one per lane.

        One butterfly for each bit of the channel's number: those of the lane, then those of k.
        """
        ops = self.ops
        for bit in range(5):
            upper = ops.shift_left(ops.bit_and(self.lane, 1 << bit), 31 - bit)
            sign = ops.from_bits(ops.bit_xor(upper, 0x3F800000))  # -1 where the bit is set
            x = [ops.fma(v, sign, self._exchange_float(v, 1 << bit)) for v in x]
        for bit in range(len(x).bit_length() - 1):
            step = 1 << bit
            x = [
                ops.fsub(x[k - step], v) if k & step else ops.fadd(v, x[k + step])
                for k, v in enumerate(x)
            ]
        return [ops.fmul(v, self.problem.head_dim**-0.5) for v in x]

    def _dot(self, a: Sequence[Value], b: Sequence[Value]) -> Value:
        """Sum of products of what a lane holds."""
        ops = self.ops
        return functools.reduce(lambda sum, pair: ops.fma(*pair, sum), zip(a, b, strict=True), 0.0)

    def _warp_sum(self, x: Value) -> Value:
        """Sum over the lanes."""
        for bit in (1, 2, 4, 8, 16):
            x = self.ops.fadd(x, self._exchange_float(x, bit))
        return x

    def _warp_max_float(self, x: Value) -> Value:
        """Greatest float of the warp, by the order of its bits (negative ones turned around)."""
        ops = self.ops

        def ordered(bits):
            return ops.bit_xor(bits, ops.bit_and(ops.shift_right_signed(bits, 31), 0x7FFFFFFF))

        return ops.from_bits(ordered(ops.warp_max(ordered(ops.as_bits(x)))))

    def _exchange_float(self, x: Value, bit: int) -> Value:
        return self.ops.from_bits(self.ops.exchange(self.ops.as_bits(x), bit))
