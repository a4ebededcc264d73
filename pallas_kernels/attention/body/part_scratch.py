"""Shared memory of parts in one loop, see `parts_s8`: their operands, sums and totals."""

from collections.abc import Sequence

from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.attention.regions import OPERANDS, SUMS
from pallas_kernels.isa.operations import Operations, Value

__all__ = ["PartScratch"]


class PartScratch(Scratch):
    """A `Scratch` with right operands of all planes, and each warp's sums of their channels."""

    def __init__(
        self,
        ops: Operations,
        spec: KernelSpec,
        work: Work,
        parts: Sequence[KernelSpec],
        number: int = 0,
    ):
        """Finds the regions of part `number`, and counts the planes of all parts."""
        super().__init__(ops, spec, work, parts, number)
        self._planes = sum(part.halves for part in parts)

    def store_operands(self, plane: Value, words: Sequence[Value]) -> None:
        """Leaves this lane's right operands of a plane, for all warps of the team."""
        for i in range(0, len(words), 4):
            self._ops.store_shared4(self._operands(plane), 128 * i, words[i : i + 4])

    def load_operands(self, plane: Value) -> list[Value]:
        """The operands that `store_operands` left."""
        at = self._operands(plane)
        return [x for i in range(0, OPERANDS, 4) for x in self._ops.load_shared4(at, 128 * i)]

    def store_sums(self, plane: Value, sums: Sequence[Value]) -> None:
        """Keeps this lane's sums of the channels of a plane."""
        words = [self._ops.as_bits(x) for x in sums]
        for i in range(0, len(words), 4):
            self._ops.store_shared4(self._sums(plane), 128 * i, words[i : i + 4])

    def load_sums(self, plane: Value) -> list[Value]:
        """The sums that `store_sums` keeps."""
        at = self._sums(plane)
        words = [x for i in range(0, SUMS, 4) for x in self._ops.load_shared4(at, 128 * i)]
        return [self._ops.from_bits(x) for x in words]

    def store_totals(self, number: Value, totals: Sequence[Value]) -> None:
        """Keeps two of this lane's numbers, of a part, or behind all parts of the whole row."""
        for i, x in enumerate(totals):
            self._ops.store_shared(1, self._totals(number), 128 * i, x)

    def load_totals(self, number: Value) -> list[Value]:
        """The totals that `store_totals` keeps."""
        return [self._ops.load_shared(self._totals(number), 128 * i) for i in range(2)]

    def member_totals(self, member: Value, number: Value, query: Value) -> list[Value]:
        """The same of a warp of this team, from a lane of a query."""
        ops, work = self._ops, self._work
        warp = ops.mad(work.team, self._spec.tuning.team, member)
        at = ops.mad(
            number, 256, ops.mad(query, 4, self._state(warp, self._planes * 4 * 32 * SUMS))
        )
        return [ops.load_shared(at, 128 * i) for i in range(2)]

    def member_sums(self, member: Value, plane: Value, query: Value) -> list[Value]:
        """Channels lane + 32 k of a plane of a query, summed by a warp of this team."""
        ops, work = self._ops, self._work
        warp = ops.mad(work.team, self._spec.tuning.team, member)
        # Channel 8 i + g is number i of lane 4 g + query.
        lane = ops.mad(ops.bit_and(work.lane, 7), 4, query)
        at = ops.mad(plane, 4 * 32 * SUMS, self._state(warp, 0))
        at = ops.mad(ops.shift_right(work.lane, 3), 4, ops.mad(lane, 16, at))
        return [ops.load_shared(at, 512 * k) for k in range(SUMS // 4)]

    def _operands(self, plane: Value) -> Value:
        ops, size = self._ops, 4 * 32 * OPERANDS
        begin = ops.mad(self._work.lane, 16, ops.add(ops.shared(), 4 * self._regions.operands))
        return ops.mad(ops.mad(self._work.team, self._planes, plane), size, begin)

    def _sums(self, plane: Value) -> Value:
        at = self._ops.mad(self._work.lane, 16, self._state(self._work.warp, 0))
        return self._ops.mad(plane, 4 * 32 * SUMS, at)

    def _totals(self, number: Value) -> Value:
        at = self._state(self._work.warp, self._planes * 4 * 32 * SUMS)
        return self._ops.mad(number, 256, self._ops.mad(self._work.lane, 4, at))

    def _state(self, warp: Value, offset: int) -> Value:
        return self._ops.add(self._warp(warp), 4 * self._regions.state + offset)
