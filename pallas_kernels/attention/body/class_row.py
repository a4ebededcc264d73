"""The blocks of all coded classes of a bank in a row, for one loop over them.

A loop for each class would have its instructions as often as there are classes: more than their
cache holds. So what differs between classes, where their words lie and how many planes these have,
is chosen anew for each block, which costs some fifty of its 3,000 instructions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

from pallas_kernels.attention.body.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import LINE, Operations, Value
from pallas_kernels.isa.warp_math import chosen
from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import BLOCK, Plane

__all__ = ["ChosenBlock", "ClassRow", "Side", "divided_by_work"]

Side = Literal["key", "value"]
_UNIT = 512  # bytes that all blocks of a plane, and all planes of a head, are multiples of


@dataclasses.dataclass(frozen=True)
class _ChosenCoding(Coding):
    """The coding of a class that is known at run time only; `bits` are the most of any class."""

    count: Value = 0
    greatest: Value = 0.0


def divided_by_work(
    ops: Operations,
    spec: KernelSpec,
    work: Work,
    classes: Sequence[Packed],
    blocks: Sequence[PackedBlocks],
) -> list[list[Value]]:
    """Counts each class's visible blocks before the warp's first one, then those before its end.

    Blocks of all classes stand in a row, and a warp takes those that lie in its part of the units
    of work. Of one query a block counts one for each plane of keys and one for what is alike in
    all, and lies where it begins, with a codebook where its middle is; of several it counts two for
    each plane, and lies where its middle is (measured).
    """
    counts = [ops.sub(x.stop, x.hidden) for x in blocks]
    of_plane = 2 if spec.uses_bytes else 1
    units = [of_plane * packed.key.bits + 1 for packed in classes]
    middle = spec.uses_bytes or classes[0].key.codebook or classes[0].value.codebook
    begins = [0]
    for count, unit in zip(counts, units, strict=True):
        begins.append(ops.mad(count, unit, begins[-1]))

    def before(bound: Value, begin: Value, unit: int, count: Value) -> Value:
        place = unit // 2 if middle else 0
        left = ops.max(ops.sub(bound, begin), 0)
        return ops.min(ops.div(ops.add(left, unit - 1 - place), unit), count)

    return [
        [before(bound, *of_class) for of_class in zip(begins[:-1], units, counts, strict=True)]
        for bound in work.share(begins[-1])
    ]


class ClassRow:
    """The warp's blocks [first, last) of the row, see `divided_by_work`.

    Attributes:
        read: the warp's blocks of classes without bits that are read one by one.
    """

    def __init__(
        self,
        ops: Operations,
        spec: KernelSpec,
        classes: Sequence[Packed],
        work: Work,
        read: Sequence[Packed] = (),
    ):
        """Divides the blocks that show anything between the warps of the team.

        Args:
            ops, spec, work: of the kernel. classes: those with bits.
            read: classes without bits, whose tokens are read one by one: they are divided, too.
        """
        self._ops, self._spec, self._work, self._classes = ops, spec, work, classes
        self._of_classes = [PackedBlocks(ops, spec, packed, work) for packed in classes]
        begins = [0]
        for blocks in self._of_classes:
            begins.append(ops.add(begins[-1], ops.sub(blocks.stop, blocks.hidden)))
        self._begins = begins[:-1]
        self._last = ops.max(ops.sub(begins[-1], 1), 0)
        self.read = [PackedBlocks(ops, spec, packed, work) for packed in read]
        every = [*self.read, *self._of_classes]
        bounds = divided_by_work(ops, spec, work, [*read, *classes], every)
        self.first, self.last = (
            functools.reduce(ops.add, before[len(read) :]) for before in bounds
        )
        for blocks, *own in zip(
            self.read, *(before[: len(read)] for before in bounds), strict=True
        ):
            blocks.take(*(ops.add(blocks.hidden, x) for x in own))

    def at(self, number: Value) -> "ChosenBlock":
        """Block `number` of the row, or the last one where there are fewer."""
        ops = self._ops
        number = ops.min(number, self._last)
        return ChosenBlock(
            ops, self._spec, self._classes, self._work, self._of_classes, self._begins, number
        )


class ChosenBlock(PackedBlocks):
    """A block of a class that is known at run time only.

    Attributes:
        packed: its class, whose sizes are not to be asked for. index: of the class, in the row.
        block: its number in the class.
        is_whole: a word, 0 where it is cut short. rows: of a plane of a whole one.
        most_quarters: of a block that is cut short, in any class.
    """

    def __init__(
        self,
        ops: Operations,
        spec: KernelSpec,
        classes: Sequence[Packed],
        work: Work,
        of_classes: Sequence[PackedBlocks],
        begins: Sequence[Value],
        number: Value,
    ):
        """Chooses what `PackedBlocks` knows."""
        self._ops, self._spec, self._work, self._classes = ops, spec, work, classes
        self.index: Value = 0
        for begin in begins[1:]:
            self.index = ops.add(self.index, ops.where_less(number, begin, 0, 1))
        hidden = self.choose([blocks.hidden for blocks in of_classes])
        self.block = ops.add(ops.sub(number, self.choose(begins)), hidden)
        self.length = self.choose([blocks.length for blocks in of_classes])
        self.starts = []
        if spec.windowed:
            each = zip(*(blocks.starts for blocks in of_classes), strict=True)
            self.starts = [self.choose(starts) for starts in each]
            self.last_start = self.choose([blocks.last_start for blocks in of_classes])
        self.packed = self._packed = dataclasses.replace(
            classes[0], key=self._coding_of("key"), value=self._coding_of("value")
        )
        self.work, self.rows = work, spec.plane_dim // 16
        self.most_quarters = max(packed.quarters for packed in classes)
        whole = self.choose([packed.whole_blocks for packed in classes])
        self.is_whole = ops.where_less(self.block, whole, 1, 0)

    def plane(self, side: Side, number: Value) -> Value:
        """Address of the first row of a plane of the block."""
        ops, dim = self._ops, self._spec.plane_dim
        words = layouts.key_words if side == "key" else layouts.value_words
        sizes = [4 * words(packed.num_positions, dim) // _UNIT for packed in self._classes]
        count = self.choose([getattr(packed, side).bits for packed in self._classes])
        plane = ops.mad(self._work.stored_head, count, number)
        index = ops.mad(self.block, BLOCK * dim // 8 // _UNIT, 0)
        index = ops.mad(plane, self.choose(sizes), index)
        return ops.address(self._operand(side), index, _UNIT)

    @property
    def quarters(self) -> Value:
        """Quarters of the class's block that is cut short; 0: there is none."""
        return self.choose([packed.quarters for packed in self._classes])

    def load_plane_row(self, side: Side, plane: Plane, row: int) -> list[Value]:
        """This lane's words of a row of a plane; what a block cut short lacks are any words."""
        ops, lane, rows = self._ops, self.work.lane, self.rows
        address = self.plane(side, plane.number)
        quarters = [packed.quarters for packed in self._classes]
        quarter = 4 * row // rows
        if side == "key":
            # A row that is not there is replaced by the first one.
            if any(0 < count <= quarter for count in quarters):
                lacks = self.choose([int(0 < count <= quarter) for count in quarters])
                there = ops.max(self.is_whole, ops.sub(1, lacks))
                lane = ops.mad(ops.mad(there, row, 0), 32, lane)
                return ops.load4(ops.address(address, lane, 16), 0)
        elif any(0 < count < 3 for count in quarters):
            # Half as wide: two loads, of which the second one repeats the first.
            narrow = self.choose([int(0 < count < 3) for count in quarters])
            wide = ops.max(self.is_whole, ops.sub(1, narrow))
            place = ops.mad(lane, 8, ops.mad(ops.mad(wide, lane, 0), 8, 0))
            row_bytes = ops.mad(wide, 256 * row, 256 * row)
            address = ops.address(address, ops.add(place, row_bytes), 1)
            upper = ops.address(address, wide, 8)
            return [*ops.load2(address, 0), *ops.load2(upper, 0)]
        return ops.load4(ops.address(address, lane, 16), 512 * row)

    def prefetch_planes(self) -> None:
        """Has the words of the block brought near; of one that is cut short a first part."""
        ops, lines = self._ops, BLOCK * self._spec.plane_dim // 8 // LINE
        last = lines - 1
        if self.most_quarters:
            last = ops.where_less(self.is_whole, 1, lines // WHOLE - 1, last)
        line = ops.min(self.work.lane, last)
        for side in ("key", "value"):
            coding = self._coding(side)
            for number in range(coding.bits):
                plane = self.plane(side, ops.min(number, ops.sub(coding.count, 1)))
                ops.prefetch(ops.address(plane, line, LINE), 0)

    def choose(self, values: Sequence[Value]) -> Value:
        """The word of the block's class, of one for each class."""
        return chosen(self._ops, self.index, values)

    def _coding_of(self, side: Side) -> _ChosenCoding:
        ops, codings = self._ops, [getattr(packed, side) for packed in self._classes]
        fields = {x.name: getattr(codings[0], x.name) for x in dataclasses.fields(Coding)}
        count = self.choose([coding.bits for coding in codings])
        greatest = self.choose([int(coding.greatest) for coding in codings])
        fields["bits"] = max(coding.bits for coding in codings)
        return _ChosenCoding(**fields, count=count, greatest=ops.to_float(greatest))

    def _operand(self, name: str) -> Value:
        """See `PackedBlocks`."""
        *others, chosen = (self._ops.pointer(f"{packed.name}{name}") for packed in self._classes)
        for number, pointer in reversed(list(enumerate(others))):
            chosen = self._ops.where_less_address(self.index, number + 1, pointer, chosen)
        return chosen

    @property
    def _num_blocks(self) -> Value:
        """See `PackedBlocks`."""
        return self.choose([packed.blocks for packed in self._classes])

    @property
    def _first_entry(self) -> Value:
        """See `PackedBlocks`."""
        slots = self._spec.entry_slots
        return self.choose([sum(slots[: packed.number]) for packed in self._classes])
