"""A warp's part of attention with scores calibrated at each step, for one query, in one launch.

The map of a query's scores follows from the lowest and the highest of them
(`vkq_jax.settings.score_maps`). So the team goes over its keys first, keeps their scores in shared
memory, finds the map, and then goes over the values: nothing is read twice.
"""

from collections.abc import Iterator, Sequence

from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_b1 import PackedB1, Words
from pallas_kernels.attention.body.packed_blocks import WHOLE
from pallas_kernels.attention.body.score_range import RangeB1, team_range, write_range
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOG2_E

__all__ = ["CalibratedB1"]


class CalibratedB1:
    """`run()` does the work. Operands: those of the parts, and what `ScoreRange` writes."""

    def __init__(self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work):
        """Keeps what the method needs."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result, and writes the range of the scores."""
        ops = self._ops
        parts = self._ops, self._spec, self._packed, self._work
        _Keys(*parts).run(scratch)
        ops.barrier()
        found = team_range(ops, scratch, 0)
        self._work.for_each_query(lambda query: write_range(ops, self._work, query, found))
        ops.barrier()  # results take the place of ranges
        _Values(*parts, self._map(*found)).run(scratch)

    def _map(self, highest: Value, lowest: Value) -> tuple[Value, Value]:
        """Slope and shift as of `score_maps.score_map`, for scores in units of log2."""
        ops, settings = self._ops, self._spec.calibration
        assert settings is not None
        narrowing = (settings.tau2 - settings.tau1) * LOG2_E
        span = ops.fsub(highest, lowest)  # below 0 where nothing is visible: nothing is mapped
        keeps_order = ops.as_bits(ops.fsub(max(narrowing, 0.0), span))
        slope = ops.fsub(1.0, ops.fmul(narrowing, ops.reciprocal(ops.fmax(span, 1e-30))))
        slope = ops.where_less_float(keeps_order, 0, slope, 1.0)
        shift = ops.fsub(ops.fmul(lowest, ops.fsub(1.0, slope)), settings.tau1 * LOG2_E)
        return slope, ops.where_less_float(keeps_order, 0, shift, 0.0)


class _Keys(RangeB1):
    """The range of the warp's scores, which stay in scratch, whole."""

    def _scores(
        self, query: FoldedQuery, block: Value, quarters: int, words: Iterator[Words]
    ) -> list[Value]:
        ops = self._ops
        scores = super()._scores(query, block, quarters, words)
        scores = [ops.fadd(x, query.offset) for x in scores]
        self._scratch.keep_scores(ops.sub(block, self._blocks.first), scores)
        return scores

    def _join(self, total: Sequence[Value], sums, offset: Value, block: Value) -> list[Value]:
        return super()._join(total, sums, 0.0, block)


class _Values(PackedB1):
    """The part over the values, whose scores were kept."""

    _sides = ("value",)

    def __init__(
        self,
        ops: Operations,
        spec: KernelSpec,
        packed: Packed,
        work: Work,
        score_map: tuple[Value, Value],
    ):
        super().__init__(ops, spec, packed, work)
        self._slope, self._shift = score_map

    def _load_query(self) -> None:
        pass

    def _prepare_query(self) -> None:
        pass

    def _fold(self, block: Value) -> FoldedQuery:
        """An empty query: the scores are there already."""
        del block
        return FoldedQuery([], 1.0, 0.0, 0.0, 0.0, None)

    def _scores(
        self, query: FoldedQuery, block: Value, quarters: int, words: Iterator[Words]
    ) -> list[Value]:
        ops = self._ops
        number = ops.sub(block, self._blocks.first)
        scores = self._scratch.kept_scores(number)[: 8 * quarters // WHOLE]
        return [ops.fma(x, self._slope, self._shift) for x in scores]
