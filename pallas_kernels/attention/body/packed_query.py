"""A query on its way to packed keys: rotated, scaled, folded with the keys' tables."""

import functools

from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.tables import load_table
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOG2_E, dot, rotate, warp_sum

__all__ = ["PackedQuery"]

# The largest channel of a query counts at least so much. With level codes products are scores in
# this unit: those of a query of zeros are zero, but a mask must still hide some of them.
_LEAST = {"levels": 1e-12, "signs": 1e-30}


class PackedQuery:
    """One query of the team, channels 32 k + 8 t + g in lane 4 g + t.

    Loads come first, in the constructor: before a kernel asks for its first blocks, behind which
    they would have to wait.

    Operands: query [rows, H] float32, times logits_scale, or that of a part in products [rows, n],
    see `KernelSpec`; for level codes key_{lower,upper}
    [heads, G, H] bfloat16, for sign codes key_centre [heads, M, H] bfloat16, where channels have
    units key_unit [heads, H] bfloat16; where scores are mapped slope, where they are shifted shift
    [rows] float32, natural.
    """

    def __init__(
        self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work, number: Value
    ):
        """Loads query `number` of the team."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        channels = [32 * k for k in range(spec.head_dim // 32)]
        self._table = functools.partial(
            load_table, ops, spec, work, packed.key, work.place, channels
        )
        row = work.row(work.query(number))
        if spec.part:
            address, first = work.products(row), spec.first_product
        else:
            address, first = ops.address(ops.pointer("query"), row, 4 * spec.head_dim), 0
        address = ops.address(address, work.place, 4)
        self._query = [ops.load_float(address, 4 * (first + channel)) for channel in channels]
        self._centres = [
            self._table("key_centre", entry=number) for number in range(packed.key.own_centres)
        ]
        self._units = self._table("key_unit") if packed.key.in_units else None
        self._more_of_centres: list[Value] = []
        self._shared_score = self._query_sum = self._kappa = 0.0
        self._slope = self._shift = None
        if spec.maps_scores:
            self._slope = ops.load_float(ops.address(ops.pointer("slope"), row, 4))
        if spec.shifts_scores:
            self._shift = ops.load_float(ops.address(ops.pointer("shift"), row, 4))

    def prepare(self) -> None:
        """Does what needs no levels: rotates the query, and sums that sign codes ask for."""
        ops, key = self._ops, self._packed.key
        query = [ops.fmul(q, LOG2_E) for q in self._query]
        if self._units is not None:
            query = [ops.fmul(q, unit) for q, unit in zip(query, self._units, strict=True)]
        if key.signs and key.score_error_factor:
            # |q|^2 / log2(e)^2 times the factor, in units of log2: times log2(e).
            factor = key.score_error_factor / LOG2_E
            self._kappa = ops.fmul(warp_sum(ops, dot(ops, query, query)), factor)
        if self._slope is not None:  # all but the square is proportional to the query
            query = [ops.fmul(q, self._slope) for q in query]
            self._kappa = ops.fmul(self._kappa, self._slope)
        if self._shift is not None:
            self._shared_score = ops.fmul(self._shift, LOG2_E)
        if key.signs:
            if self._centres:
                centre, *others = (warp_sum(ops, dot(ops, query, x)) for x in self._centres)
                self._shared_score = ops.fadd(self._shared_score, centre)
                self._more_of_centres = [ops.fsub(other, centre) for other in others]
            if key.rotated:
                query = rotate(ops, query, self._work.lane, self._spec.head_dim)
            self._query_sum = warp_sum(ops, functools.reduce(ops.fadd, query))
        self._query = query

    def fold(self, block: Value, greatest: float, factor: Value = 1.0) -> FoldedQuery:
        """The query for the chunk that `block` belongs to, as integers.

        Args:
            block: any of the chunk.
            greatest: number of the largest channel. factor: of this lane's numbers.
        """
        ops = self._ops
        query, offset = self._query, 0.0
        if not self._packed.key.signs:
            lower, upper = (self._table(f"key_{name}", block) for name in ("lower", "upper"))
            offset = warp_sum(ops, dot(ops, query, lower))
            steps = 2**self._packed.key.bits - 1
            query = [
                ops.fmul(ops.fmul(q, 1.0 / steps), ops.fsub(high, low))
                for q, low, high in zip(query, lower, upper, strict=True)
            ]
        largest = functools.reduce(
            ops.max, [ops.bit_and(ops.as_bits(q), 0x7FFFFFFF) for q in query]
        )
        least = _LEAST["signs" if self._packed.key.signs else "levels"]
        largest = ops.fmax(ops.from_bits(ops.warp_max(largest)), least)
        factor = ops.fmul(ops.fmul(ops.reciprocal(largest), greatest), factor)
        return FoldedQuery(
            [ops.to_int(ops.fmul(q, factor)) for q in query],
            ops.fmul(largest, 1.0 / greatest),
            self._query_sum,
            self._kappa,
            ops.fadd(self._shared_score, offset),
            self._spec.logits_soft_cap,
            self._more_of_centres,
        )
