"""How the work of a launch is cut: measured choices, by the number of rows and blocks."""

from pallas_kernels.problem import Tiling

__all__ = ["choose_tiling"]

_WARPS = 132 * 16  # that an H100 holds at 128 registers a thread


def choose_tiling(rows: int, blocks: int) -> Tiling:
    """The tiling for `rows` queries of one KV head each, over `blocks` blocks of positions."""
    if blocks in (3, 9) and rows % 4 == 0:
        return Tiling(warpgroups=3, warps_per_row=3)
    warps_per_row = 4
    splits = 1
    while rows * warps_per_row * splits < _WARPS and 2 * splits * warps_per_row <= blocks:
        splits *= 2
    long = blocks >= 16 * warps_per_row * splits
    for warpgroups in (2, 1) if long else (4, 2, 1):
        if rows * splits % warpgroups == 0:
            return Tiling(warpgroups, warps_per_row, splits)
    raise AssertionError("one warpgroup always fits")
