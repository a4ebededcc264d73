"""Half a block of slots of one class of tokens: which one is a thread block's, and its results.

A launch takes keys and values of all classes with bits. A thread block finds out when it runs which
class and which side are its own: numbers tell them apart, and branches where words are put in
order.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import chosen
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import Side
from pallas_kernels.quantize.half_block import HALF
from pallas_kernels.quantize.tiled_image import TiledImage

__all__ = ["SIDES", "BlocksSpec", "ClassBlock"]

SIDES: tuple[Side, ...] = ("key", "value")


@dataclasses.dataclass(frozen=True)
class BlocksSpec:
    """Keys and values of one layer, all classes.

    Attributes:
        heads: of all sequences. positions, head_dim: of tokens [2, heads, V, H].
        capacities, planes: of each class.
    """

    heads: int
    positions: int
    head_dim: int
    capacities: tuple[int, ...]
    planes: tuple[int, ...]

    @property
    def coded(self) -> tuple[int, ...]:
        """Classes that have bits."""
        return tuple(c for c, planes in enumerate(self.planes) if planes)

    @property
    def halves(self) -> tuple[int, ...]:
        """Half blocks of each class of a head."""
        return tuple(-(-capacity // HALF) for capacity in self.capacities)

    @property
    def slots(self) -> int:
        """Slots of a head, each class padded to whole half blocks."""
        return HALF * sum(self.halves)

    @property
    def grid(self) -> int:
        """Thread blocks: for each class with bits, of all heads of keys, then of values."""
        return 2 * self.heads * sum(self.halves[c] for c in self.coded)

    @property
    def row_bytes(self) -> int:
        """Bytes of a token of a head, in bfloat16."""
        return 2 * self.head_dim

    def plane_dim(self, number: int) -> int:
        """Channels of a plane of a class."""
        del number
        return self.head_dim

    def words(self, number: int, side: Side) -> int:
        """Words of a plane of a class of a head."""
        count = layouts.key_words if side == "key" else layouts.value_words
        return count(self.capacities[number], self.plane_dim(number))


class ClassBlock:
    """Which half block is this thread block's.

    Operands: slot [heads, slots] int32, the position in each slot, negative where there is none.
    Results, for each side s and each class c with bits: words_s_c [heads, planes, n] and scale_s_c
    [heads, blocks, 32, 2], as in `TiledDictionary`.

    Attributes:
        thread, lane, warp: numbers in the thread block.
        place: of the class, among those with bits. side: 0 for keys, 1 for values.
        row: of the head, among those of keys, then of values. head: among those of a side.
        half: number of the half block in its class of the head.
    """

    def __init__(self, ops: Operations, spec: BlocksSpec):
        """Computes them all."""
        self._ops, self._spec = ops, spec
        self.thread = ops.thread_index()
        self.lane = ops.bit_and(self.thread, 31)
        self.warp = ops.uniform(ops.shift_right(self.thread, 5))
        block = ops.block_index()
        counts = [spec.halves[c] for c in spec.coded]
        starts = [0, *itertools.accumulate(2 * spec.heads * n for n in counts)][:-1]
        self.place: Value = 0
        self.row: Value = 0
        self.half: Value = 0
        for place, (start, count) in enumerate(zip(starts, counts, strict=True)):
            own = ops.sub(block, start)
            self.place = ops.where_less(block, start, self.place, place)
            self.row = ops.where_less(block, start, self.row, ops.div(own, count))
            self.half = ops.where_less(block, start, self.half, ops.rem(own, count))
        self.side = ops.where_less(self.row, spec.heads, 0, 1)
        self.head = ops.where_less(self.row, spec.heads, self.row, ops.sub(self.row, spec.heads))

    def of_class(self, numbers: Sequence[int]) -> Value:
        """The number of this thread block's class, from those of classes with bits."""
        return chosen(self._ops, self.place, numbers)

    def float_of(self, place: Value, numbers: Sequence[float]) -> Value:
        """The float of that place, of these."""
        value: Value = numbers[0]
        for i, number in enumerate(numbers[1:], 1):
            value = self._ops.where_less_float(place, i, value, number)
        return value

    def load_position(self) -> tuple[Value, Value]:
        """The position in this thread's slot, and whether there is one, a word."""
        ops, spec = self._ops, self._spec
        first = [HALF * sum(spec.halves[:c]) for c in spec.coded]
        slot = ops.add(self.of_class(first), ops.mad(self.half, HALF, self.thread))
        slot = ops.mad(self.head, spec.slots, slot)
        position = ops.load(ops.address(ops.pointer("slot"), slot, 4))
        return ops.max(position, 0), ops.where_less(position, 0, 0, 1)

    def where(self, own: Value, number: int, work: Callable[[], None]) -> None:
        """Does the work in thread blocks whose number is this one."""

        def branch(_: list[Value]) -> list[Value]:
            work()
            return []

        self._ops.cond(self._ops.equal(own, number), [], branch)

    def image(self, side: Side, number: int, words: Value, scales: Value) -> TiledImage:
        """The half block, of a class of this number, at these addresses of shared memory."""
        spec = self._spec
        return TiledImage(
            self._ops,
            spec.plane_dim(number),
            self.thread,
            self.lane,
            self.warp,
            self.half,
            halves=spec.halves[number],
            words=spec.words(number, side),
            image=words,
            scales=scales,
        )

    def write(self, words: Value, scales: Value) -> None:
        """Writes all planes and the scales of the class, from these addresses."""
        ops, spec = self._ops, self._spec
        own = ops.mad(self.place, len(SIDES), self.side)
        for place, c in enumerate(spec.coded):
            for number, side in enumerate(SIDES):

                def work(side: Side = side, c: int = c) -> None:
                    self._write(side, c, self.image(side, c, words, scales))

                self.where(own, len(SIDES) * place + number, work)

    def _write(self, side: Side, number: int, image: TiledImage) -> None:
        ops, spec = self._ops, self._spec
        base = ops.pointer(f"words_{side}_{number}")
        for plane in range(spec.planes[number]):
            row = ops.mad(self.head, spec.planes[number], plane)
            image.write_words(side, base, ops.mad(row, image.words, 0), plane)
        blocks = layouts.num_blocks(spec.capacities[number])
        block = ops.mad(self.head, blocks, ops.shift_right(self.half, 1))
        image.write_scales(8, ops.pointer(f"scale_{side}_{number}"), block)
