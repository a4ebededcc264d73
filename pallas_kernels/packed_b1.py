"""Attention of a warp over packed keys and values with the tensor core's 1-bit instructions.

For each block of 256 positions and each query of the team:

1. *scores.* Key words go to the tensor core as they were loaded. The query, scales folded in, is
   16- or 24-bit fixed point, as bit planes. Lane 4 g + t gets the scores of positions
   32 i + 8 t + g.
2. *softmax.* Relative to the block's own maximum, so that a sink elsewhere costs no precision. A
   scale per position of the values is folded in here; then 15-bit fixed point, as bit planes.
3. *values.* Value words go to the tensor core as they were loaded. Lane 4 g + t gets channels
   64 h + 16 t + 8 r + g.

A block's words are loaded once for all queries of the team. Blocks that share all tables form a
chunk: the query's planes are made anew for each, and levels of values are applied to its sums.
Scores are in units of log2 throughout.

    s[t] = q . lower + sum_i (q_i (upper_i - lower_i)) code[t, i]                       level codes
    s[t] = q . centre + a[t] (2 sum_i (R q)_i code[t, i] - sum_i (R q)_i - kappa a[t])   sign codes
"""

import functools
from collections.abc import Sequence

from pallas_kernels import layouts
from pallas_kernels.bit_planes import COUNT_UNIT, BitPlanes
from pallas_kernels.layouts import BLOCK, QUARTER
from pallas_kernels.operations import Operations, Value
from pallas_kernels.packed_query import PackedQuery
from pallas_kernels.partials import Partials
from pallas_kernels.problem import Coding, Packed, Problem
from pallas_kernels.tables import load_table
from pallas_kernels.warp_math import LOWEST, merge, warp_max_float, warp_sum
from pallas_kernels.work import Work

__all__ = ["PackedB1"]

_MAX = 32767.0  # of weights in fixed point
_TO_INT = 2.0**23  # added to a float below 2^22, it rounds it and leaves the integer in its bits
_TO_INT_BITS = 0x4B000000


class PackedB1:
    """The packed bank's part of the work of one warp; `run()` does it all.

    Operands: query [rows, H] float32, times logits_scale * log2(e); key, value: words of each head;
    length [sequences]; for level codes {key,value}_{lower,upper} [heads, G, H] bfloat16, for sign
    codes {key,value}_centre [heads, H] bfloat16 and {key,value}_scale: words of each head.
    """

    def __init__(self, ops: Operations, problem: Problem, packed: Packed, work: Work):
        """Finds this warp's blocks."""
        self.ops, self.problem, self.packed, self.work = ops, problem, packed, work
        self.place = ops.mad(work.t, 8, work.g)  # of this lane's positions in 32
        self.channel = ops.mad(work.t, 16, work.g)  # of its output: 64 h + 16 t + 8 r + g
        self.planes = BitPlanes(ops, work.lane)
        length = ops.address(ops.pointer("length"), work.sequence, 4)
        self.length = ops.uniform(ops.load(length))
        blocks = ops.div(ops.add(self.length, BLOCK - 1), BLOCK)
        self.first, self.last = work.share(blocks)
        # Of those that are not cut short.
        self.last_whole = ops.min(self.last, packed.whole_blocks)

    def run(self, partials: Partials, side: int) -> list[PackedQuery]:
        """Leaves a partial result for each query; returns what the queries' scores share."""
        ops, problem, packed, work = self.ops, self.problem, self.packed, self.work
        size = packed.chunk_blocks
        ahead = []
        if packed.whole_blocks:
            ahead = self._load_keys(ops.min(self.first, packed.whole_blocks - 1))
        self._ahead = len(ahead)
        queries = [
            PackedQuery(ops, problem, packed, work, number)
            for number in range(problem.tiling.queries)
        ]
        first_chunk = ops.div(self.first, size)
        chunks = ops.sub(ops.div(ops.add(self.last, size - 1), size), first_chunk)
        chunks = ops.where_less(self.first, self.last, chunks, 0)

        def chunk(i, carried):
            block, *rest = carried
            ahead, totals = rest[: self._ahead], rest[self._ahead :]
            number = ops.add(first_chunk, i)
            folded = [query.fold(self.planes, block) for query in queries]
            stop = ops.min(self.last, ops.mad(number, size, size))
            sums = self._empty()
            if packed.whole_blocks:
                _, *rest = ops.loop(
                    ops.sub(ops.min(stop, packed.whole_blocks), block),
                    [block, *ahead, *sums],
                    lambda _, carried: self._block(folded, carried),
                )
                ahead, sums = rest[: self._ahead], rest[self._ahead :]
            if packed.quarters:
                cut_short = ops.where_less(packed.whole_blocks, stop, 1, 0)
                sums = ops.cond(cut_short, sums, lambda sums: self._last_block(folded, sums))
            return [stop, *ahead, *self._add_chunk(totals, sums, folded, block)]

        empty = [LOWEST, 0.0] + [0.0] * (problem.head_dim // 32)
        start = [self.first, *ahead, *empty * len(queries)]
        totals = self._by_query(ops.loop(chunks, start, chunk)[1 + self._ahead :])
        for number, (highest, mass, *channels) in enumerate(totals):
            first_lane = ops.where_less(work.lane, 1, 1, 0)
            partials.store(
                side,
                number,
                highest,
                mass,
                channels,
                at=self.channel,
                offsets=self._paired(),
                where=1,
                once=first_lane,
            )
        return queries

    # One block ------------------------------------------------------------------------------------

    def _empty(self) -> list[Value]:
        """For each query, over no block: maximum, sum of p, sum of p times scale, channels."""
        empty = [LOWEST, 0.0, 0.0] + [0.0] * (self.problem.head_dim // 32)
        return empty * self.problem.tiling.queries

    def _by_query(self, flat: Sequence[Value]) -> list[list[Value]]:
        size = len(flat) // self.problem.tiling.queries
        return [list(flat[i : i + size]) for i in range(0, len(flat), size)]

    def _block(self, folded: Sequence[tuple], carried: list[Value]) -> list[Value]:
        """A whole block: its keys are in registers, those of the next on their way at the end."""
        ops = self.ops
        block, *rest = carried
        keys, sums = rest[: self._ahead], self._by_query(rest[self._ahead :])
        words = self._load_words("value", block, BLOCK // QUARTER)
        value_scales = self._load_scales("value", self.packed.value, block)
        scores = self._scores(folded, keys)
        following = ops.add(block, 1)
        ahead = self._load_keys(ops.min(following, ops.sub(self.last_whole, 1)))
        new = self._add_block(block, sums, scores, words, value_scales)
        return [following, *ahead, *new]

    def _last_block(self, folded: Sequence[tuple], sums: list[Value]) -> list[Value]:
        """The block that is cut short: less to load, fewer products."""
        block, quarters = self.packed.whole_blocks, self.packed.quarters
        words = self._load_words("value", block, quarters)
        value_scales = self._load_scales("value", self.packed.value, block)
        scores = self._scores(folded, self._load_keys(block, quarters))
        return self._add_block(block, self._by_query(sums), scores, words, value_scales)

    def _load_keys(self, block: Value, quarters: int = BLOCK // QUARTER) -> list[Value]:
        """Words and scales of a block of keys, flat."""
        words = self._load_words("key", block, quarters)
        return [*words, *self._load_scales("key", self.packed.key, block)]

    def _load_words(self, name: str, block: Value, quarters: int) -> list[Value]:
        """This lane's words of a block: 4 of each row (2 for values of at most two quarters)."""
        ops, head_dim = self.ops, self.problem.head_dim
        count = layouts.key_words if name == "key" else layouts.value_words
        head_bytes = 4 * count(self.packed.num_positions, head_dim)
        address = ops.address(ops.pointer(name), self.work.stored_head, head_bytes)
        address = ops.address(address, block, BLOCK * head_dim // 8)
        rows = head_dim // 16
        if name == "value" and quarters <= 2:
            address = ops.address(address, self.work.lane, 8)
            return [word for row in range(rows) for word in ops.load2(address, 256 * row)]
        if name == "key":
            rows = rows * quarters // 4
        address = ops.address(address, self.work.lane, 16)
        return [word for row in range(rows) for word in ops.load4(address, 512 * row)]

    def _load_scales(self, name: str, coding: Coding, block: Value) -> list[Value]:
        """This lane's words of a block's scales; none for level codes."""
        ops = self.ops
        if not coding.signs:
            return []
        number = ops.mad(self.work.stored_head, self.packed.blocks, block)
        address = ops.address(ops.pointer(f"{name}_scale"), number, BLOCK * coding.scale_bits // 8)
        address = ops.address(address, self.work.lane, coding.scale_bits)
        return (ops.load2 if coding.scale_bits == 8 else ops.load4)(address, 0)

    def _scores(self, folded: Sequence[tuple], keys: list[Value]) -> list[list[Value]]:
        """For each query, scores of positions 32 i + 8 t + g, less what all positions share."""
        num_scales = self.packed.key.scale_bits // 4
        words, scale_words = keys[: len(keys) - num_scales], keys[len(keys) - num_scales :]
        scales = self._decode_scales(scale_words, self.packed.key) if num_scales else []
        return [self._scores_of(query, words, scales) for query in folded]

    def _scores_of(self, query: tuple, words: list[Value], scales: list[Value]) -> list[Value]:
        ops, head_dim = self.ops, self.problem.head_dim
        planes, unit, _, shared = query
        row_words = 8 if head_dim == 128 else 4
        sums = []
        for k in range(len(words) // row_words):
            tiles = []
            for quarter in range(4):
                if head_dim == 128:
                    at = 8 * k + 4 * (quarter // 2) + 2 * (quarter % 2)
                else:
                    at = 4 * k + 2 * (quarter // 2)
                rows = words[at : at + 2]
                tiles.append([ops.mma_b1_k128(rows, plane) for plane in planes[quarter % 2]])
            sums += self.planes.weigh(tiles)
        if not self.packed.key.signs:
            return [ops.fmul(x, unit) for x in sums]
        twice, less = ops.fmul(unit, 2.0), ops.fsub(0.0, shared.query_sum)
        scores = [ops.fma(x, twice, less) for x in sums]
        scales = scales[: len(scores)]
        if self.packed.key.score_error_factor:
            minus = ops.fsub(0.0, shared.kappa)
            scores = [ops.fma(a, minus, s) for a, s in zip(scales, scores, strict=True)]
        return [ops.fmul(a, s) for a, s in zip(scales, scores, strict=True)]

    def _hide_padding(self, block: Value, scores: list[list[Value]]) -> list[list[Value]]:
        """Scores from `length` on are lowered so far that their weight is 0."""
        ops = self.ops
        left = ops.sub(self.length, ops.mad(block, BLOCK, 0))  # positions from the block's first
        size = len(scores[0])

        def hide(flat):
            mine = ops.sub(left, self.place)
            return [
                ops.where_less_float(32 * (i % size), mine, score, 2 * LOWEST)
                for i, score in enumerate(flat)
            ]

        needed = ops.where_less(left, 32 * size, 1, 0)
        flat = ops.cond(needed, [x for of_query in scores for x in of_query], hide)
        return [flat[i : i + size] for i in range(0, len(flat), size)]

    def _add_block(self, block, sums, scores, words, value_scales) -> list[Value]:
        """Each query's new sums, flat."""
        scores = self._hide_padding(block, scores)
        scales = []
        if self.packed.value.signs:
            scales = self._decode_scales(value_scales, self.packed.value)
        return [
            x
            for sums_of, scores_of in zip(sums, scores, strict=True)
            for x in self._add_scores(sums_of, scores_of, words, scales[: len(scores_of)])
        ]

    def _add_scores(self, sums, scores, words, scales) -> list[Value]:
        """Softmax relative to the block's maximum, the product with the values, the new sums."""
        ops = self.ops
        highest, mass, scaled_mass, *channels = sums
        top = warp_max_float(ops, functools.reduce(ops.fmax, scores))
        weights = [ops.exp2(ops.fsub(s, top)) for s in scores]
        block_mass, largest, factor = 0.0, 1.0, _MAX
        if scales:
            block_mass = functools.reduce(ops.fadd, weights)
            weights = [ops.fmul(w, a) for w, a in zip(weights, scales, strict=True)]
            bits = ops.warp_max(ops.as_bits(functools.reduce(ops.fmax, weights)))
            largest = ops.fmax(ops.from_bits(bits), 1e-30)
            factor = ops.fmul(ops.reciprocal(largest), _MAX)
        numbers = [ops.as_bits(ops.fma(w, factor, _TO_INT)) for w in weights]
        total = functools.reduce(ops.add, numbers)
        total = ops.to_float(ops.sub(total, len(numbers) * _TO_INT_BITS & 0xFFFFFFFF))
        products = self._values(words, numbers)

        new_highest = ops.fmax(highest, top)
        old, new = (ops.exp2(ops.fsub(x, new_highest)) for x in (highest, top))
        unit = ops.fmul(ops.fmul(new, largest), 1.0 / _MAX)
        if scales:
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
        numbers = [*numbers, *[_TO_INT_BITS] * (-len(numbers) % 4)]
        halves = [self.planes.split(numbers[i : i + 4], 2) for i in range(0, len(numbers), 4)]
        planes = list(zip(*halves, strict=True))
        row_words = 2 * len(halves)
        mma = ops.mma_b1_k256 if len(halves) == 2 else lambda a, b: ops.mma_b1_k128(a, b[0])
        sums = []
        for h in range(self.problem.head_dim // 64):
            tiles = []
            for quarter in range(4):
                at = row_words * (4 * h + quarter)
                tiles.append([mma(words[at : at + row_words], plane) for plane in planes])
            sums += self.planes.weigh(tiles)
        return sums

    # A chunk --------------------------------------------------------------------------------------

    def _add_chunk(self, totals, sums, folded, block) -> list[Value]:
        """Decodes a chunk's sums and adds them to the warp's totals, flat."""
        ops, value = self.ops, self.packed.value
        levels = None
        if not value.signs:
            lower, upper = (
                load_table(
                    ops,
                    self.problem,
                    self.work,
                    f"value_{name}",
                    value,
                    block,
                    self.channel,
                    self._paired(),
                )
                for name in ("lower", "upper")
            )
            levels = lower, [ops.fsub(high, low) for low, high in zip(lower, upper, strict=True)]
        new = []
        for total, of_query, query in zip(
            self._by_query(totals), self._by_query(sums), folded, strict=True
        ):
            top, mass, scaled_mass, *products = of_query
            mass = warp_sum(ops, mass)
            if levels is None:
                less = ops.fsub(0.0, warp_sum(ops, scaled_mass))
                channels = [ops.fma(x, 2.0, less) for x in products]
            else:
                channels = [
                    ops.fma(x, step, ops.fmul(mass, low))
                    for x, low, step in zip(products, *levels, strict=True)
                ]
            new += merge(ops, [total, [ops.fadd(top, query[2]), mass, *channels]])
        return new

    # Pieces ---------------------------------------------------------------------------------------

    def _paired(self) -> list[int]:
        """Channels of a lane that start at `channel`: 64 h + 8 r."""
        return [64 * h + 8 * r for h in range(self.problem.head_dim // 64) for r in (0, 1)]

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
