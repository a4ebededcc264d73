"""Results of parts that one loop takes, see `parts_s8`: sums of all warps joined and written."""

import functools
import math
from collections.abc import Callable, Sequence

from pallas_kernels.attention.body.part_scratch import PartScratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import BOOK, KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import warp_max_float, warp_sum

__all__ = ["RowResults"]


class RowResults:
    """`write()` does one warp's part of it.

    Args:
        ops, work: of the kernel. specs: of the parts. scratch: of the row.
        of_queries: of any part: what all scores of a query lack is the same in all.
    """

    def __init__(
        self,
        ops: Operations,
        specs: Sequence[KernelSpec],
        work: Work,
        scratch: PartScratch,
        of_queries: PartScratch,
    ):
        """Keeps what the methods need."""
        self._ops, self._specs, self._work = ops, specs, work
        self._scratch, self._of_queries = scratch, of_queries

    def write(self) -> None:
        """Each query of each part is written by one warp of the team."""
        for number in range(len(self._specs)):
            self._for_each_query(number, functools.partial(self._write, number))
        packed = self._specs[0].packed
        if packed is not None and packed.value.codebook:
            self._for_each_query(len(self._specs), self._write_masses)

    def _for_each_query(self, number: int, action: Callable[[Value], None]) -> None:
        """Runs `action`, the launch's one of that number, for each query, each in one warp."""
        ops, tuning = self._ops, self._specs[0].tuning
        member = self._work.member_after(number * tuning.queries)
        for first in range(0, tuning.queries, tuning.team):
            query = ops.add(member, first)

            def run(_, query=query):
                action(query)
                return []

            ops.cond(ops.where_less(query, tuning.queries, 1, 0), [], run)

    def _of_team(self, query: Value) -> tuple[Value, Value, Value]:
        """The warp of this lane's number, in all further ones the last; greatest score, mass."""
        ops, lane, team = self._ops, self._work.lane, self._specs[0].tuning.team
        member = ops.min(lane, team - 1)
        highest, mass = self._scratch.member_totals(member, len(self._specs), query)
        top = warp_max_float(ops, highest)
        mass = ops.fmul(mass, ops.exp2(ops.fsub(highest, top)))
        return member, top, warp_sum(ops, ops.where_less_float(lane, team, mass, 0.0))

    def _offset(self, query: Value) -> Value:
        """The term that all scores of a query lack."""
        if self._specs[0].logits_soft_cap is not None:
            return 0.0
        return self._ops.load_shared(self._of_queries.query_scalars(query), 12)

    def _write(self, number: int, query: Value) -> None:
        """Joins the sums of a part for a query of the team, normalizes and writes them."""
        ops, work, spec = self._ops, self._work, self._specs[number]
        scratch, parts = self._scratch, len(self._specs)
        member, top, mass = self._of_team(query)
        own_top, less = scratch.member_totals(member, number, query)
        share = ops.as_bits(ops.exp2(ops.fsub(own_top, top)))
        less = ops.as_bits(less)
        first = sum(x.halves for x in self._specs[:number])

        def add(i, channels):
            of_warp, minus = (ops.from_bits(ops.take(x, i)) for x in (share, less))
            found = [
                x
                for half in range(spec.halves)
                for x in scratch.member_sums(i, first + half, query)
            ]
            found = [ops.fma(x, 2.0, minus) for x in found]
            return [ops.fma(x, of_warp, sum) for x, sum in zip(found, channels, strict=True)]

        channels = ops.loop(spec.tuning.team, [0.0] * (spec.head_dim // 32), add)
        normalize = ops.fmul(ops.reciprocal(ops.fmax(mass, 1e-30)), float(parts))
        exists, row = work.result_row(query)
        address = ops.address(ops.pointer(f"{spec.part}output"), row, 4 * spec.head_dim)
        address = ops.address(address, work.lane, 4)
        for k, x in enumerate(channels):
            ops.store_float(exists, address, 128 * k, ops.fmul(x, normalize))
        log = ops.fadd(ops.fadd(top, self._offset(query)), ops.log2(mass))
        ops.store_float(
            ops.where_less(work.lane, 1, exists, 0),
            ops.address(ops.pointer(f"{spec.part}logsumexp"), row, 4),
            0,
            ops.fma(log, math.log(2.0), -math.log(parts)),
        )

    def _write_masses(self, query: Value) -> None:
        """Joins the weights by centroid and writes them, for each part the same."""
        ops, work = self._ops, self._work
        _, top, mass = self._of_team(query)
        top = ops.fadd(top, self._offset(query))
        normalize = ops.reciprocal(ops.fmax(mass, 1e-30))

        def add(member, sums):
            floats = self._scratch.member_masses(member, query)
            share = ops.exp2(ops.fsub(ops.load_shared(floats, 4 * BOOK), top))
            share = ops.fmul(share, normalize)
            at = ops.mad(work.lane, 4, floats)
            return [ops.fma(ops.load_shared(at, 128 * k), share, x) for k, x in enumerate(sums)]

        sums = ops.loop(self._specs[0].tuning.team, [0.0] * (BOOK // 32), add)
        exists, row = work.result_row(query)
        for spec in self._specs:
            address = ops.address(ops.pointer(f"{spec.part}value_mass"), row, 4 * BOOK)
            address = ops.address(address, work.lane, 4)
            for k, x in enumerate(sums):
                ops.store_float(exists, address, 128 * k, x)
