"""The meaning of sums over bits of values, and the way of a result out of its warp."""

import functools
from collections.abc import Sequence

from pallas_kernels.attention.body.block_softmax import num_totals
from pallas_kernels.attention.body.centre_ids import centroid_masses
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.tables import load_table, prefetch_table
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import rotate, warp_sum

__all__ = ["PackedValues"]


class PackedValues:
    """Decodes sums over a chunk, and results over all chunks; a lane has some channels of a query.

    Operands, bfloat16: for level codes value_{lower,upper} [heads, G, H], for sign codes
    value_centre [heads, M, H].

    Args:
        ops, spec, packed, work: of the kernel.
        start, offsets: the lane's channels. bits: of the numbers of lanes that share its query.
    """

    def __init__(
        self,
        ops: Operations,
        spec: KernelSpec,
        packed: Packed,
        work: Work,
        start: Value,
        offsets: Sequence[int],
        bits: Sequence[int],
    ):
        """Keeps what the methods need."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        self._start, self._offsets, self._bits = start, offsets, bits
        self._table = functools.partial(load_table, ops, spec, work, packed.value, start, offsets)

    def prefetch_tables(self) -> None:
        """Has what is needed at the end brought near."""
        coding = self._packed.value
        names = ("value_lower", "value_upper")
        if coding.signs:
            names = ("value_centre",) * (coding.own_centres > 0)
        for name in names:
            prefetch_table(self._ops, self._spec, self._work, coding, name)

    def levels(self, block: Value) -> list[list[Value]]:
        """Lower and upper levels of the lane's channels, for `decode`; of sign codes none.

        Args:
            block: any block of the chunk.
        """
        names = () if self._packed.value.signs else ("value_lower", "value_upper")
        return [self._table(name, block) for name in names]

    def centres(self) -> list[list[Value]]:
        """Each centroid's numbers in the lane's channels, for `store`; of level codes none."""
        coding = self._packed.value
        numbers = range(coding.own_centres)
        return [self._table("value_centre", entry=number) for number in numbers]

    def decode(
        self, sums: Sequence[Value], offset: Value, levels: Sequence[Sequence[Value]]
    ) -> list[Value]:
        """From a chunk's sums (see `block_softmax`): maximum, mass, sums of centroids, channels.

        Values of sign codes stay rotated and around their centre.

        Args:
            sums: over a chunk. offset: of its scores. levels: of the chunk.
        """
        ops = self._ops
        first = num_totals(self._packed.value)
        (top, mass, scaled_mass, *of_centres), products = sums[:first], sums[first:]
        mass, *of_centres = (warp_sum(ops, x, self._bits) for x in (mass, *of_centres))
        if self._packed.value.signs:
            less = ops.fsub(0.0, warp_sum(ops, scaled_mass, self._bits))
            channels = [ops.fma(x, 2.0, less) for x in products]
        else:
            lower, upper = levels
            steps = 2**self._packed.value.bits - 1
            channels = [
                ops.fma(ops.fmul(x, 1.0 / steps), ops.fsub(high, low), ops.fmul(mass, low))
                for x, low, high in zip(products, lower, upper, strict=True)
            ]
        return [ops.fadd(top, offset), mass, *of_centres, *channels]

    def store(
        self,
        scratch: Scratch,
        query: Value,
        result: Sequence[Value],
        centres: Sequence[Sequence[Value]],
        *,
        where: Value,
        once: Value,
    ) -> None:
        """Leaves the result over all chunks as this warp's for a query, see `store_result`.

        Args:
            scratch: where to. query: number in the team. result: `decode`d, of all chunks.
            centres: of sign codes. where, once: as there.
        """
        ops, packed = self._ops, self._packed
        if packed.value.signs:
            highest, mass, *channels = result
            of_centres, channels = (
                channels[: packed.value.centre_sums],
                channels[packed.value.centre_sums :],
            )
            if packed.value.rotated:  # the lanes' numbers and the place together tell the channel
                head_dim = self._spec.head_dim
                channels = rotate(ops, channels, self._work.lane, head_dim, self._bits)
            masses = centroid_masses(ops, mass, of_centres)
            for share, centre in zip(masses if centres else [], centres, strict=True):
                channels = [ops.fma(c, share, x) for x, c in zip(channels, centre, strict=True)]
            result = [highest, mass, *channels]
        scratch.store_result(
            query,
            result,
            at=self._start,
            offsets=self._offsets,
            where=where,
            once=once,
        )
