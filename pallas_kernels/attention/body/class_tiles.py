"""Where the planes of a row of blocks wait in shared memory, see `class_row`."""

import functools
from collections.abc import Callable, Mapping, Sequence

from pallas_kernels.attention.body.class_row import ChosenBlock, ClassRow, Side
from pallas_kernels.attention.body.packed_blocks import WHOLE
from pallas_kernels.attention.body.s8_blocks import LoadRow
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.layout.layouts import Plane

__all__ = ["ClassTiles", "add_row"]


class ClassTiles:
    """Planes of a row's blocks, which wait in two slots of shared memory in turn.

    While the products of one are under way the next one is being copied: keys' planes, then
    values', then the next block's.
    """

    def __init__(
        self,
        ops: Operations,
        scratch: Scratch,
        here: ChosenBlock,
        following: ChosenBlock,
        slot: Value,
    ):
        """Knows a block, the one that comes next, and the slot of the first one's first plane."""
        self._ops, self._scratch = ops, scratch
        self._here, self._following, self._slot = here, following, slot
        self._opened: dict[Side, tuple[Value, Value]] = {}

    def start(self) -> None:
        """Starts to copy the block's first plane."""
        here = self._here
        self._copy(self._slot, here.plane("key", 0), here.is_whole, 1, here)

    @property
    def next_slot(self) -> Value:
        """The slot of the next block's first plane."""
        packed, ops = self._here.packed, self._ops
        planes = ops.add(packed.key.count, packed.value.count)
        return ops.bit_and(ops.add(self._slot, planes), 1)

    def load_row(self, side: Side, plane: Plane, row: int) -> list[Value]:
        """This lane's words of a row of a plane; the first one that is asked for opens it."""
        number, slot = self._opened.get(side, (None, None))
        if number is not plane.number:
            slot = self._open(side, plane.number)
            self._opened[side] = plane.number, slot
        return self._scratch.load_row("value", row, slot)

    def _open(self, side: Side, number: Value) -> Value:
        """The slot of a plane whose words are there by now; the next one is being copied."""
        ops, here, following = self._ops, self._here, self._following
        count = getattr(here.packed, side).count
        before = 0 if side == "key" else here.packed.key.count
        slot = ops.bit_and(ops.add(ops.add(self._slot, before), number), 1)
        more = ops.add(number, 1)
        last = here.plane("value", 0) if side == "key" else following.plane("key", 0)
        address = ops.where_less_address(more, count, here.plane(side, more), last)
        is_whole, is_key = here.is_whole, ops.where_less(more, count, 1, 0)
        if side == "value":
            is_key = ops.where_less(more, count, 0, 1)
            is_whole = ops.where_less(more, count, here.is_whole, following.is_whole)
        ops.wait_for_copies()
        ops.warp_barrier()
        keys = here if side == "key" else following
        self._copy(ops.bit_xor(slot, 1), address, is_whole, is_key, keys)
        return slot

    def _copy(
        self, slot: Value, address: Value, is_whole: Value, is_key: Value, keys: ChosenBlock
    ) -> None:
        """Starts to copy this lane's words of a plane to a slot of shared memory.

        The slot keeps its old words where a block is cut short.

        Args:
            slot: number of the slot. address: of the plane.
            is_whole, is_key: words, 0 if its block, or its side, is not.
            keys: the block of the plane if it is of keys; if it is of values that is this one.
        """
        ops, lane, rows = self._ops, self._here.work.lane, self._here.rows

        def copy(first: int, stop: int, row_bytes: int) -> list[Value]:
            at = ops.address(address, lane, row_bytes // 32)
            for row in range(first, stop):
                self._scratch.copy_row("value", row, slot, at, row_bytes * row, row_bytes // 32)
            return []

        def copy_rest(_):
            for quarter in range(self._here.most_quarters):
                first, stop = (rows * x // WHOLE for x in (quarter, quarter + 1))
                there = ops.where_less(quarter, keys.quarters, is_key, 0)
                ops.cond(there, [], lambda _, a=first, b=stop: copy(a, b, 512))
            narrow = ops.where_less(self._here.quarters, 3, 1, 0)
            ops.cond(ops.where_less(is_key, narrow, 1, 0), [], lambda _: copy(0, rows, 256))
            wide = ops.add(is_key, narrow)  # of values, three quarters
            ops.cond(ops.where_less(wide, 1, 1, 0), [], lambda _: copy(0, rows, 512))
            return []

        if self._here.most_quarters:
            ops.cond(is_whole, [], lambda _: copy(0, rows, 512), copy_rest)
        else:
            copy(0, rows, 512)
        ops.group_copies()


AddBlock = Callable[
    [ChosenBlock, ChosenBlock, Sequence[Value], Mapping[str, LoadRow], Sequence[Value]],
    tuple[list[Value], list[Value]],
]


def add_row(
    ops: Operations,
    scratch: Scratch,
    row: ClassRow,
    sums: Sequence[Value],
    load: Callable[[ChosenBlock], list[Value]],
    add: AddBlock,
    *,
    staged: bool,
) -> list[Value]:
    """The sums with the warp's blocks of a row added, one after the other.

    Args:
        ops, scratch: of the warp. row: of blocks. sums: before.
        load: the words of a block's positions, of the first one. add: from a block, the next one,
            words of the block's positions, `load_rows` of both sides (see `S8Products`) and sums:
            the new sums, and words of the next block's positions.
        staged: planes wait in shared memory; else they are prefetched to the L2 cache.
    """

    def step(i: Value, carried: list[Value]) -> list[Value]:
        slot, old, ahead = carried[0], carried[1 : 1 + len(sums)], carried[1 + len(sums) :]
        number = ops.add(row.first, i)
        here, following = row.at(number), row.at(ops.add(number, 1))
        tiles = ClassTiles(ops, scratch, here, following, slot)
        load_row = tiles.load_row if staged else here.load_plane_row
        if not staged:
            following.prefetch_planes()
        load_rows = {side: functools.partial(load_row, side) for side in ("key", "value")}
        new, words = add(here, following, ahead, load_rows, old)
        return [tiles.next_slot, *new, *words]

    first = row.at(row.first)
    if staged:
        ClassTiles(ops, scratch, first, first, 0).start()
    ahead = load(first)
    count = ops.sub(row.last, row.first)
    return ops.loop(count, [0, *sums, *ahead], step)[1 : 1 + len(sums)]
