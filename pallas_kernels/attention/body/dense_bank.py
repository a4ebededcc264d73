"""Attention of a warp over dense keys and values, for up to four queries at once.

A block is 16 positions. Both products run on the tensor core with the bank as its left operand,
loaded 16 bytes a lane; the order of channels inside a product is free, so it follows the loads:

    scores   [16 positions, 8 columns] = K [16, H] Q [H, 8]
    channels [H, 8 columns]           += V^T [H, 16] P [16, 8]

Columns 2 q and 2 q + 1 belong to query q: what bfloat16 holds of a number, and what it leaves (16
bits of mantissa together). Lane 4 g + t gets the scores of query t at positions g and g + 8, and
of its channels 8 g ... those listed in `_channels`.

Banks are in bfloat16, or in 8 bits, which are made into bfloat16 as they are loaded: a token's
scales multiply its score, and its weight in the second product.
"""

import functools
from collections.abc import Sequence

from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Dense
from pallas_kernels.attention.kernel_spec import SET, KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import (
    LOG2_E,
    LOWEST,
    SAME_QUERY,
    bytes_as_bfloat16,
    exchange_float,
    merge,
    soft_capped,
    warp_sum,
)

__all__ = ["DenseBanks"]

_BLOCK = 16
_HIGH = 0xFFFF0000


class DenseBanks:
    """The dense banks' part of the work of one warp; `run()` does it all.

    Operands: query [rows, H] float32, times logits_scale; for each bank {name}_key and
    {name}_value [heads, S, H] bfloat16, or int8 with {name}_key_scale and {name}_value_scale
    [heads, S] bfloat16, and {name}_visible [sequences, positions] int32: where what
    the queries see ends; with a window {name}_start, where it begins.
    """

    def __init__(self, ops: Operations, spec: KernelSpec, work: Work, first_query: int):
        """Loads the queries of the team from `first_query` on, at most four."""
        self.ops, self.spec, self.work = ops, spec, work
        self._first = first_query
        self._count = min(SET, spec.tuning.queries - first_query)
        self._right = self._load_queries()

    def run(self, scratch: Scratch) -> None:
        """Joins this warp's results for its queries with those over the packed bank, if any."""
        ops, spec, work = self.ops, self.spec, self.work
        tiles = spec.head_dim // 16
        sums = [LOWEST, 0.0] + [0.0] * (4 * tiles)
        for bank in spec.dense:
            sums = self._add_bank(bank, sums)
        highest, mass, *channels = sums
        # Columns 2t and 2t + 1 are the two parts of the weights of query t.
        channels = [ops.fadd(channels[i], channels[i + 1]) for i in range(0, len(channels), 2)]
        result = [highest, warp_sum(ops, mass, SAME_QUERY), *channels]
        query = work.team_query(work.t, self._first)
        offsets = [channel for tile in range(tiles) for channel in self._channels(tile)]
        at = ops.mad(work.g, 8, 0)
        if spec.packed is not None:
            ops.warp_barrier()
            packed = scratch.load_result(query, at=at, offsets=offsets)
            result = merge(ops, [result, packed])
            ops.warp_barrier()
        mine = ops.where_less(work.t, self._count, 1, 0)
        once = ops.where_less(work.g, 1, mine, 0)
        scratch.store_result(query, result, at=at, offsets=offsets, where=mine, once=once)

    def _add_bank(self, bank: Dense, sums: list[Value]) -> list[Value]:
        ops, work, name = self.ops, self.work, bank.name
        visible = work.of_queries(f"{name}_visible", self._first, self._count)
        most = functools.reduce(ops.max, visible, 0)
        stop, blocks = work.mine(visible), ops.div(ops.add(most, _BLOCK - 1), _BLOCK)
        start, hidden = 0, 0
        if self.spec.windowed:
            starts = work.of_queries(f"{name}_start", self._first, self._count)
            hidden = ops.div(functools.reduce(ops.min, starts), _BLOCK)
            start, hidden = work.mine(starts), ops.min(hidden, blocks)
        first, last = work.share(blocks, hidden)
        # Behind a packed bank, a few blocks of text: not worth the registers of loading ahead.
        ahead = self._load_keys(bank, first) if self.spec.packed is None else []
        num_ahead = len(ahead)

        def block(i, carried):
            ahead, sums = carried[:num_ahead], carried[num_ahead:]
            number = ops.add(first, i)
            values = self._load_values(bank, number)
            key_scales, value_scales = (
                self._load_scales(bank, side, number) for side in ("key", "value")
            )
            scores = self._scores(ahead or self._load_keys(bank, number), key_scales)
            if ahead:
                ahead = self._load_keys(bank, ops.add(number, 1))
            position = ops.mad(number, _BLOCK, work.g)

            def hide(i, score):
                place = ops.add(position, 8 * i)
                score = ops.where_less_float(place, stop, score, 2 * LOWEST)
                if not self.spec.windowed:
                    return score
                return ops.where_less_float(place, start, 2 * LOWEST, score)

            scores = [hide(i, score) for i, score in enumerate(scores)]
            return [*ahead, *self._add_block(sums, scores, values, value_scales)]

        return ops.loop(ops.sub(last, first), [*ahead, *sums], block)[num_ahead:]

    # Loads ----------------------------------------------------------------------------------------

    def _load_queries(self) -> list[list[Value]]:
        """Right operands: column g is part g % 2 of query g // 2."""
        ops, spec, work = self.ops, self.spec, self.work
        number = ops.min(ops.shift_right(work.g, 1), self._count - 1)
        row = work.row(work.query(ops.add(number, self._first)))
        address = ops.address(ops.pointer("query"), row, 4 * spec.head_dim)
        address = ops.address(address, work.t, 32)  # 8 channels
        low_part = ops.bit_and(work.g, 1)
        right = []
        for c in range(spec.head_dim // 32):
            for half in (0, 16):
                words = ops.load4(address, 128 * c + half)
                floats = [ops.fmul(ops.from_bits(word), LOG2_E) for word in words]
                pairs = (floats[:2], floats[2:])
                right.append([self._part(first, second, low_part) for first, second in pairs])
        return right

    def _part(self, first: Value, second: Value, low_part: Value) -> Value:
        """Two neighbours' bfloat16, or what it leaves of them in lanes where low_part is not 0."""
        ops = self.ops
        high = [ops.from_bits(ops.bit_and(ops.as_bits(x), _HIGH)) for x in (first, second)]
        low = [ops.fsub(x, h) for x, h in zip((first, second), high, strict=True)]
        return ops.where_less(low_part, 1, ops.pack_bfloat16(*high), ops.pack_bfloat16(*low))

    def _load_keys(self, bank: Dense, block: Value) -> list[Value]:
        """Channels 32 c + 8 t ... + 7 of positions g and g + 8: four words each."""
        words = []
        for row in (0, 8):
            position = self.ops.add(self.work.g, row)
            address = self._address(bank, "key", block, position, self.work.t)
            for c in range(self.spec.head_dim // 32):
                words += self._load_channels(bank, address, 32 * c)
        return words

    def _load_values(self, bank: Dense, block: Value) -> list[list[Value]]:
        """Channels 8 g ... (and 64 + 8 g ...) of positions 2t, 2t + 1, 2t + 8, 2t + 9."""
        rows = []
        twice = self.ops.shift_left(self.work.t, 1)
        for offset in (0, 1, 8, 9):
            position = self.ops.add(twice, offset)
            address = self._address(bank, "value", block, position, self.work.g)
            firsts = range(0, self.spec.head_dim, 64)
            rows.append([w for c in firsts for w in self._load_channels(bank, address, c)])
        return rows

    def _load_channels(self, bank: Dense, address: Value, channel: int) -> list[Value]:
        """Eight channels from this one on, in bfloat16."""
        ops = self.ops
        if not bank.coded:
            return ops.load4(address, 2 * channel)
        return [x for word in ops.load2(address, channel) for x in bytes_as_bfloat16(ops, word)]

    def _load_scales(self, bank: Dense, side: str, block: Value) -> list[Value]:
        """Those of positions g and g + 8 in 8 bits; none of others."""
        if not bank.coded:
            return []
        ops, name = self.ops, f"{bank.name}_{side}_scale"
        places = [self._place(bank, block, ops.add(self.work.g, i)) for i in (0, 8)]
        of_head = ops.address(ops.pointer(name), self.work.stored_head, 2 * bank.capacity)
        halves = [ops.load_half(ops.address(of_head, place, 2)) for place in places]
        return [ops.from_bits(ops.shift_left(half, 16)) for half in halves]

    def _place(self, bank: Dense, block: Value, position: Value) -> Value:
        """The slot of a position of a block; behind the bank's end, its last one."""
        ops = self.ops
        return ops.min(ops.mad(block, _BLOCK, position), bank.capacity - 1)

    def _address(self, bank: Dense, side: str, block, position, lane: Value) -> Value:
        """The address of eight channels of a position of a block."""
        ops, work, size = self.ops, self.work, 1 if bank.coded else 2
        row_bytes, name = size * self.spec.head_dim, f"{bank.name}_{side}"
        address = ops.address(ops.pointer(name), work.stored_head, bank.capacity * row_bytes)
        address = ops.address(address, self._place(bank, block, position), row_bytes)
        return ops.address(address, lane, 8 * size)

    # Products -------------------------------------------------------------------------------------

    def _scores(self, keys: list[Value], scales: Sequence[Value]) -> list[Value]:
        """The scores of query t at positions g and g + 8."""
        ops, half = self.ops, len(keys) // 2
        sums = [0.0] * 4
        for i, right in enumerate(self._right):
            at = 2 * i
            left = [keys[at], keys[half + at], keys[at + 1], keys[half + at + 1]]
            sums = ops.mma_bfloat16(left, right, sums)
        scores = self._scaled([ops.fadd(sums[0], sums[1]), ops.fadd(sums[2], sums[3])], scales)
        cap = self.spec.logits_soft_cap
        return scores if cap is None else [soft_capped(ops, x, cap) for x in scores]

    def _scaled(self, x: list[Value], scales: Sequence[Value]) -> list[Value]:
        """Numbers of positions g and g + 8 times their scales, if there are any."""
        return [self.ops.fmul(*pair) for pair in zip(x, scales, strict=True)] if scales else x

    def _add_block(
        self, sums: Sequence[Value], scores: list[Value], values, scales: Sequence[Value]
    ) -> list[Value]:
        """Softmax of one block and its product with the values, added to the sums."""
        ops = self.ops
        highest, mass, *channels = sums
        top = ops.fmax(*scores)
        for bit in SAME_QUERY:
            top = ops.fmax(top, exchange_float(ops, top, bit))
        top = ops.fmax(top, highest)
        old = ops.exp2(ops.fsub(highest, top))
        weights = [ops.exp2(ops.fsub(score, top)) for score in scores]
        mass = ops.fma(mass, old, ops.fadd(*weights))
        right = [self._weight_operand(weight) for weight in self._scaled(weights, scales)]
        new = []
        for tile in range(self.spec.head_dim // 16):
            left = [self._pair(values, tile, half, pair) for pair in (0, 2) for half in (0, 1)]
            sums_of = [ops.fmul(x, old) for x in channels[4 * tile : 4 * tile + 4]]
            new += ops.mma_bfloat16(left, right, sums_of)
        return [top, mass, *new]

    def _weight_operand(self, weight: Value) -> Value:
        """Rows k (positions) and columns n of a right operand, from a score's place (n, k)."""
        ops = self.ops
        high = ops.from_bits(ops.bit_and(ops.as_bits(weight), _HIGH))
        return ops.transpose_halves(ops.pack_bfloat16(high, ops.fsub(weight, high)))

    def _channels(self, tile: int) -> tuple[int, int]:
        """Channels, from 8 g on, of rows g and g + 8 of a tile."""
        return (tile, 64 + tile) if self.spec.head_dim == 128 else (tile, 4 + tile)

    def _pair(self, values: list[list[Value]], tile: int, half: int, pair: int) -> Value:
        """One channel at two neighbouring positions."""
        channel = self._channels(tile)[half]
        word = 4 * (channel // 64) + channel % 64 // 2
        selector = 0x7632 if channel % 2 else 0x5410
        return self.ops.bytes(values[pair][word], values[pair + 1][word], selector)
