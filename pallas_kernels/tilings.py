"""How the work of a launch is cut: measured choices, by the number of queries and positions."""

from pallas_kernels.problem import Packed, Tiling

__all__ = ["choose_tiling"]

_MULTIPROCESSORS = 132  # of an H100
_WARPS = 16  # that one of them holds at 128 registers a thread


def choose_tiling(
    heads: int, queries: int, packed: Packed | None, dense: tuple[tuple[str, int], ...]
) -> Tiling:
    """The tiling for `heads` KV heads, each read by `queries` queries.

    A team takes up to four queries of a KV head, so that a block is loaded once for them (one
    where tables come in groups); with more, two teams were faster than a large one. Many teams with
    short banks: small thread blocks, which fill the device evenly whatever their number. Otherwise
    large ones; long banks and few heads are shared by more warps, then by the thread blocks of a
    cluster, which cost more.
    """
    grouped = packed is not None and packed.chunk_blocks < packed.blocks
    per_team = 1 if grouped else -(-queries // -(-queries // 4))
    teams = heads * -(-queries // per_team)
    if packed is not None and packed.blocks <= 16 and 2 * teams >= 7 * _MULTIPROCESSORS:
        return Tiling(warps=4, team=2, queries=per_team)
    blocks = (packed.blocks if packed else 0) + sum(-(-capacity // 16) for _, capacity in dense)
    wanted = _MULTIPROCESSORS * _WARPS // 2
    team = splits = 1
    while team < _WARPS and teams * team < wanted and 2 * team <= blocks:
        team *= 2
    while splits < 8 and teams * team * splits < wanted and 2 * splits * team <= blocks:
        splits *= 2
    return Tiling(warps=_WARPS, team=team, splits=splits, queries=per_team)
