"""Entries of a tensor's tables, for the channels of a lane."""

from collections.abc import Sequence

from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import LINE, Operations, Value

__all__ = ["load_table", "prefetch_table"]


def load_table(
    ops: Operations,
    spec: KernelSpec,
    work: Work,
    coding: Coding,
    start: Value,
    offsets: Sequence[int],
    name: str,
    block: Value = None,
    entry: int | None = None,
) -> list[Value]:
    """Channels `start` plus each offset of a bfloat16 table [heads, G, H], as floats.

    Args:
        ops, spec, work: of the kernel. coding: of the table's side.
        start, offsets: of this lane's channels.
        name: of the operand. block: of positions, which tells the group; of one group none.
        entry: number of the centroid; None: the table has a row for all.
    """
    row = work.stored_head
    if coding.groups > 1:
        row = ops.mad(row, coding.groups, ops.div(block, coding.group_blocks))
    if coding.centres > 1 and entry is not None:
        row = ops.mad(row, coding.centres, entry)
    address = _row(ops, spec, name, row)
    address = ops.address(address, start, 2)
    halves = [ops.load_half(address, 2 * offset) for offset in offsets]
    return [ops.from_bits(ops.shift_left(half, 16)) for half in halves]


def prefetch_table(
    ops: Operations, spec: KernelSpec, work: Work, coding: Coding, name: str
) -> None:
    """Has the first group's entries of a table, of all centroids, brought near, a line a lane."""
    line = ops.min(work.lane, coding.centres * 2 * spec.head_dim // LINE - 1)
    row = ops.mad(work.stored_head, coding.groups * coding.centres, 0)
    ops.prefetch(ops.address(_row(ops, spec, name, row), line, LINE), 0)


def _row(ops: Operations, spec: KernelSpec, name: str, row: Value) -> Value:
    return ops.address(ops.pointer(name), row, 2 * spec.head_dim)
