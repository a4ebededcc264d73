"""How the work of a launch is cut: measured choices, by the number of queries and positions."""

from pallas_kernels.problem import Packed, Tiling

__all__ = ["choose_tiling"]

_WARPS = 132 * 8  # that keep an H100's memory busy


def choose_tiling(
    heads: int, queries: int, packed: Packed | None, dense: tuple[tuple[str, int], ...]
) -> Tiling:
    """The tiling for `heads` KV heads, each read by `queries` queries.

    A warp handles up to four queries of a KV head at once, so that a block is loaded once for them;
    long banks and few heads are shared by more warps, and by the thread blocks of a cluster.
    """
    per_team = -(-queries // -(-queries // 4))
    blocks = (packed.blocks if packed else 0) + sum(-(-capacity // 16) for _, capacity in dense)
    teams = heads * -(-queries // per_team)
    team, splits = 1, 1
    while team < 8 and teams * team < 2 * _WARPS and 2 * team <= blocks:
        team *= 2
    while splits < 8 and teams * team * splits < _WARPS and 2 * splits * team <= blocks:
        splits *= 2
    return Tiling(warps=max(4, team), team=team, splits=splits, queries=per_team)
