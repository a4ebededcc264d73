"""How the work of a launch is cut: measured choices, by the number of queries and positions."""

from pallas_kernels.problem import SET, Packed, Tiling

__all__ = ["choose_tiling"]

_MULTIPROCESSORS = 132  # of an H100
_WARPS = 16  # that one of them holds at 128 registers a thread


def choose_tiling(
    heads: int, queries: int, packed: Packed | None, dense: tuple[tuple[str, int], ...]
) -> Tiling:
    """The tiling for `heads` KV heads, each read by `queries` queries.

    A team takes up to eight queries of a KV head, so that a block is loaded once for them (one
    where tables come in groups, four where there is no packed bank or codes have several bits).
    With few heads and banks of less than 64 blocks, two teams of four are faster than one whose
    positions are split.
    """
    grouped = packed is not None and packed.chunk_blocks < packed.blocks
    narrow = packed is None or packed.most_bits > 1
    most = 1 if grouped else SET if narrow else 2 * SET
    tiling = _tiling(heads, queries, most, packed, dense)
    if packed is not None and packed.blocks < 64 and tiling.queries > SET and tiling.splits > 1:
        return _tiling(heads, queries, SET, packed, dense)
    return tiling


def _tiling(
    heads: int,
    queries: int,
    most: int,
    packed: Packed | None,
    dense: tuple[tuple[str, int], ...],
) -> Tiling:
    """The tiling for teams of at most `most` queries.

    Many teams of up to four with short banks: small thread blocks, which fill the device evenly
    whatever their number. Otherwise large ones; long banks and few heads are shared by more warps,
    then by more thread blocks, whose results have to be joined.
    """
    per_team = -(-queries // -(-queries // most))
    teams = heads * -(-queries // per_team)
    short = packed is not None and packed.blocks <= 16 and per_team <= SET
    if short and 2 * teams >= 7 * _MULTIPROCESSORS:
        return Tiling(warps=4, team=2, queries=per_team)
    blocks = (packed.blocks if packed else 0) + sum(-(-capacity // 16) for _, capacity in dense)
    wanted = _MULTIPROCESSORS * _WARPS // 2
    splits = 1
    team = 1 if per_team <= SET else 4  # shared memory has room for the queries of four such teams
    while team < _WARPS and teams * team < wanted and 2 * team <= blocks:
        team *= 2
    while teams * team * splits < wanted and 2 * splits * team <= blocks:
        splits *= 2
    return Tiling(warps=_WARPS, team=team, splits=splits, queries=per_team)
