"""The lowest and the highest score of each query over a packed bank: what score calibration maps.

A pass of its own, over the keys alone: the map has to be known before the first weight.
"""

import functools
import math
from collections.abc import Sequence

from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_b1 import PackedB1
from pallas_kernels.attention.body.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.attention.body.s8_blocks import S8Blocks
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import SET, KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import (
    ALL_LANES,
    LOWEST,
    SAME_QUERY,
    exchange_float,
)

__all__ = ["RangeB1", "ScoreRange", "team_range", "write_range"]

_EMPTY = [LOWEST, -LOWEST]  # highest, lowest


class ScoreRange:
    """`run()` does the work of one warp.

    Operands: those of the parts, but for values; layer [1] int32 where there are several. Results,
    one after the other for each split: highest and lowest [splits * rows], float32, natural;
    `LOWEST` and its opposite, about, where nothing is visible.
    """

    def __init__(self, ops: Operations, spec: KernelSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec, self._work = ops, spec, Work(ops, spec)
        self._scratch = Scratch(ops, spec, self._work)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec, work = self._ops, self._spec, self._work
        assert spec.packed is not None
        part = _RangeS8 if spec.uses_bytes else RangeB1
        part(ops, spec, spec.packed, work).run(self._scratch)
        ops.barrier()

        def write(query):
            write_range(ops, work, query, team_range(ops, self._scratch, query))

        work.for_each_query(write)


def team_range(ops: Operations, scratch: Scratch, query: int) -> list[Value]:
    """Highest and lowest of what the team's warps left for a query, in units of log2."""
    parts = scratch.load_team(query, ())
    return functools.reduce(lambda a, b: _joined(ops, a, b), parts)


def write_range(ops: Operations, work: Work, query: int, found: Sequence[Value]) -> None:
    """Writes it, in nats."""
    exists, row = work.result_row(query)
    for name, x in zip(("highest", "lowest"), found, strict=True):
        address = ops.address(ops.pointer(name), row, 4)
        first = ops.where_less(work.lane, 1, exists, 0)
        ops.store_float(first, address, 0, ops.fmul(x, math.log(2.0)))


class RangeB1(PackedB1):
    """The part of a warp for one query; its sums are the range."""

    _sides = ("key",)

    def _empty(self) -> list[Value]:
        return _EMPTY

    _empty_total = _empty

    def _add(self, sums: Sequence[Value], scores: list[Value], block: Value, words) -> list[Value]:
        highest = self._hide(block, scores)
        lowest = self._hide(block, scores, hidden=-LOWEST)
        return _joined(self._ops, sums, _range(self._ops, highest, lowest))

    def _join(self, total: Sequence[Value], sums, offset: Value, block: Value) -> list[Value]:
        found = [self._ops.fadd(x, offset) for x in sums]
        return _joined(self._ops, total, found)

    def leave(self, scratch: Scratch, total: Sequence[Value]) -> None:
        """Leaves the range for the team."""
        found = _over_lanes(self._ops, total, ALL_LANES)
        once = self._ops.where_less(self._work.lane, 1, 1, 0)
        scratch.store_result(0, found, at=0, offsets=(), where=0, once=once)


class _RangeS8(S8Blocks):
    """The part of a warp for several queries; blocks straight from device memory."""

    _sides = ("key",)

    def run(self, scratch: Scratch) -> None:
        """Leaves a range for each query."""
        ops, packed, work = self._ops, self._packed, self._work
        self.queries.prepare(scratch)
        blocks = self._blocks = PackedBlocks(ops, self._spec, packed, work)
        ops.barrier()

        def add_blocks(queries, ranges):
            def whole(i, ranges):
                return self._add_block(scratch, queries, ops.add(blocks.first, i), WHOLE, ranges)

            def rest(ranges):
                block, quarters = packed.whole_blocks, packed.quarters
                return self._add_block(scratch, queries, block, quarters, ranges)

            if packed.whole_blocks:
                ranges = ops.loop(ops.sub(blocks.last_whole, blocks.first), ranges, whole)
            return ops.cond(blocks.has_rest, ranges, rest) if packed.quarters else ranges

        queries = self.queries.load(scratch)
        ranges = self.queries.shortening(scratch, queries, _EMPTY * len(queries), add_blocks)
        ops.warp_barrier()
        for number, query in enumerate(queries):
            found = [ops.fadd(x, query.offset) for x in ranges[2 * number : 2 * number + 2]]
            left = self._spec.tuning.queries - SET * number
            mine = ops.where_less(work.t, left, 1, 0)
            scratch.store_result(
                work.team_query(work.t, SET * number),
                _over_lanes(ops, found, SAME_QUERY),
                at=0,
                offsets=(),
                where=0,
                once=ops.where_less(work.g, 1, mine, 0),
            )

    def _add_block(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        quarters: int,
        ranges: Sequence[Value],
    ) -> list[Value]:
        ops, blocks = self._ops, self._blocks
        load_row = functools.partial(blocks.load_row, "key", block, quarters)
        ids = self._spread_scales(scratch, self._load_position_words(block))
        hidden_below = self._scores(scratch, queries, block, quarters, load_row, ids["key"])
        hidden_above = self._hide(block, hidden_below, hidden=-LOWEST)
        new = []
        for number, of_set in enumerate(zip(hidden_below, hidden_above, strict=True)):
            new += _joined(ops, ranges[2 * number : 2 * number + 2], _range(ops, *of_set))
        return new


def _range(ops: Operations, highest: list[Value], lowest: list[Value]) -> list[Value]:
    """Maximum of the ones, minimum of the others: scores hidden below, and above, all others."""
    return [functools.reduce(ops.fmax, highest), functools.reduce(ops.fmin, lowest)]


def _joined(ops: Operations, a: Sequence[Value], b: Sequence[Value]) -> list[Value]:
    return [ops.fmax(a[0], b[0]), ops.fmin(a[1], b[1])]


def _over_lanes(ops: Operations, found: Sequence[Value], bits: Sequence[int]) -> list[Value]:
    """The range over lanes whose numbers differ in these bits."""
    return functools.reduce(
        lambda x, bit: _joined(ops, x, [exchange_float(ops, y, bit) for y in x]), bits, [*found]
    )
