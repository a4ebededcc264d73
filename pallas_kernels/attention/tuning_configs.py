"""How the work of a launch is cut: measured choices, by the number of queries and positions."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.attention.codings import Dense, Packed
from pallas_kernels.attention.kernel_spec import SET, KernelSpec, TuningConfig
from pallas_kernels.attention.regions import Regions
from pallas_kernels.isa.architectures import HOPPER, Architecture
from pallas_kernels.layout.layouts import HEAD_DIMS
from vkq_jax.settings.config import ScoreCalibration

__all__ = ["choose_tuning", "fits_at_once", "keeping_tuning", "tunings_at_once"]

_MULTIPROCESSORS = 132  # of an H100
_RESERVED_BYTES = 12 * 1024  # of a thread block's shared memory: for what the launch takes itself
_WARPS = 16  # that one of them holds at 128 registers a thread


def choose_tuning(
    heads: int,
    queries: int,
    head_dim: int,
    classes: Sequence[Packed],
    dense: tuple[Dense, ...],
    architecture: Architecture = HOPPER,
) -> TuningConfig:
    """The tuning for `heads` KV heads of `head_dim` stored channels, each with `queries` queries.

    A packed bank counts with those of its `classes` that have bits. The choice was measured on
    Hopper. Other devices take the same, in smaller thread blocks where they would not have the
    shared memory, and with a team's second query unused where tensor cores do not multiply bits: a
    single query takes bytes as several do (but where tables come in groups, which `ptxas` then
    writes out).

    A team takes up to eight queries of a KV head, so that a block is loaded once for them (one
    where tables come in groups, four where there is no packed bank or a side has several code
    planes). More than four, or several of 256 channels, need twice the registers: half as many
    warps.
    """
    grouped = any(packed.chunk_blocks < packed.blocks for packed in classes)
    planes = max((packed.most_bits for packed in classes), default=0)
    narrow = planes != 1 or head_dim > HEAD_DIMS[-1]
    most = 1 if grouped else SET if narrow else 2 * SET
    per_team = -(-queries // -(-queries // most))
    teams = heads * -(-queries // per_team)
    if classes and not grouped and not architecture.multiplies_bits:
        per_team = max(per_team, 2)
    wide = per_team > SET
    warps = _WARPS // 2 if wide or (per_team > 1 and head_dim > HEAD_DIMS[-1]) else _WARPS
    packed_blocks = sum(packed.blocks for packed in classes if packed.most_bits)
    tuning = None
    if classes and packed_blocks <= 16 and not wide:
        tuning = _for_short_banks(teams, per_team, warps, classes)
    if tuning is None:
        blocks = packed_blocks + sum(-(-bank.capacity // 16) for bank in dense)
        tuning = _for_long_banks(teams, per_team, warps, blocks, classes)
    return _within_memory(tuning, head_dim, classes, architecture)


def _for_short_banks(
    teams: int, per_team: int, warps: int, classes: Sequence[Packed]
) -> TuningConfig | None:
    """The tuning for many teams with short banks, of up to four queries; None for few teams.

    Many teams: two warps each, in small thread blocks, which fill the device evenly whatever their
    number; in large ones where those do too (of one query with a codebook, whose tables take
    registers, in blocks of eight warps).

    Short banks of several classes of tokens have too few blocks to divide evenly between more than
    four warps, and eight in a thread block keep their registers. So they are cut where thread
    blocks of two such teams fill the device once.
    """
    if 2 * teams >= 7 * _MULTIPROCESSORS:
        if _reads_codebook_alone(per_team, classes) and -(-2 * teams // 8) <= _MULTIPROCESSORS:
            warps = 8
        large = (per_team > 1 or warps == 8) and _fills_evenly(-(-2 * teams // warps))
        return TuningConfig(warps=warps if large else 4, team=2, queries=per_team)
    several = per_team > 1 and classes[0].of_classes > 1
    of_eight = -(-teams // 2)  # thread blocks
    one_round = of_eight <= _MULTIPROCESSORS and _fills_evenly(of_eight)
    if several and not classes[0].key.codebook and one_round:
        return TuningConfig(warps=8, team=4, queries=per_team)
    return None


def _for_long_banks(
    teams: int, per_team: int, warps: int, blocks: int, classes: Sequence[Packed]
) -> TuningConfig:
    """The tuning in large thread blocks, of `warps` warps.

    Long banks and few heads are shared by more warps, then by more thread blocks, whose results
    have to be joined. A launch that would leave half of the device without a thread block is cut
    into smaller ones.
    """
    wanted = _MULTIPROCESSORS * warps // 2
    splits = 1
    team = 4 if per_team > SET else 1  # shared memory has room for the queries of two wide teams
    while team < warps and teams * team < wanted and 2 * team <= blocks:
        team *= 2
    while teams * team * splits < wanted and 2 * splits * team <= blocks:
        splits *= 2
    while warps > max(4, team) and 2 * splits * -(-teams * team // warps) <= _MULTIPROCESSORS:
        warps //= 2
    of_book = per_team > 1 and any(x.key.codebook for x in classes)
    if team == 16 and (of_book or (_reads_codebook_alone(per_team, classes) and splits > 1)):
        # Tables of centroids leave no room for words that wait: more registers serve better.
        warps, team = 8, 8
    return TuningConfig(warps=warps, team=team, splits=splits, queries=per_team)


def _reads_codebook_alone(per_team: int, classes: Sequence[Packed]) -> bool:
    """Whether one query a team reads a codebook, beside Hadamard planes.

    Learned dictionaries, a loop for each part, were slower in thread blocks of eight warps.
    """
    return per_team == 1 and any(x.key.codebook and x.key.centred for x in classes)


def _within_memory(
    tuning: TuningConfig,
    head_dim: int,
    classes: Sequence[Packed],
    architecture: Architecture,
) -> TuningConfig:
    """The tuning with as few warps a thread block as its shared memory asks for.

    Tunings that were measured on a device fit that device and stay as they are.
    """
    while tuning.warps > 4 and not architecture.tried:
        spec = _of_one_head(tuning, head_dim, classes)
        if 4 * Regions.of((spec,)).words + 1024 <= architecture.shared_bytes:
            break
        # Teams that no longer fit one thread block are shared by more of them.
        warps = tuning.warps // 2 if tuning.warps % 8 == 0 else 4
        team = min(tuning.team, warps)
        splits = tuning.splits * tuning.team // team
        tuning = dataclasses.replace(tuning, warps=warps, team=team, splits=splits)
    return tuning


def tunings_at_once(heads: int, queries: int, classes: Sequence[Packed]) -> list[TuningConfig]:
    """The tunings for parts that one loop takes, the best one first; not all fit into memory.

    Eight warps fill a multiprocessor's memory: one team of eight or, where there are more teams
    than multiprocessors, two of four, which need not wait for each other in thread blocks of their
    own. Tokens without bits count, too: they are read one by one for the centroids of a codebook.
    """
    per_team = -(-queries // -(-queries // SET))
    teams, warps = heads * -(-queries // per_team), _WARPS // 2
    blocks, splits = sum(packed.blocks for packed in classes), 1
    while 2 * splits * teams <= _MULTIPROCESSORS and 2 * splits * warps <= blocks:
        splits *= 2
    one = TuningConfig(warps=warps, team=warps, splits=splits, queries=per_team)
    half = dataclasses.replace(one, warps=warps // 2, team=warps // 2)
    return [half, one] if teams > _MULTIPROCESSORS else [one]


def fits_at_once(parts: Sequence[KernelSpec], architecture: Architecture) -> bool:
    """Whether one loop takes these parts, see `body.parts_s8`: they fit into shared memory."""
    if len(parts) < 2 or not 1 < parts[0].tuning.queries <= SET:
        return False
    if any(part.plane_dim != HEAD_DIMS[-1] for part in parts):
        return False
    return 4 * Regions.of(parts).words + 1024 <= architecture.shared_bytes


def _of_one_head(
    tuning: TuningConfig,
    head_dim: int,
    classes: Sequence[Packed],
    calibration: ScoreCalibration | None = None,
) -> KernelSpec:
    """A launch whose thread blocks have the shared memory of any with this tuning."""
    return KernelSpec(
        batch=1,
        kv_heads=1,
        queries=tuning.queries,
        head_dim=head_dim,
        classes=tuple(classes),
        tuning=tuning,
        calibration=calibration,
    )


def keeping_tuning(
    tuning: TuningConfig, packed: Packed, head_dim: int, architecture: Architecture = HOPPER
) -> TuningConfig | None:
    """The tuning, or one of wider teams, whose shared memory has room for all scores of a bank.

    None where there is none: of several queries a team, of teams in several thread blocks, or of
    more scores than a thread block can keep.
    """
    if tuning.queries > 1 or tuning.splits > 1:
        return None
    while True:
        spec = _of_one_head(tuning, head_dim, (packed,), ScoreCalibration())
        if 4 * Regions.of((spec,)).words <= architecture.shared_bytes - _RESERVED_BYTES:
            return tuning
        if 2 * tuning.team > tuning.warps:
            return None
        tuning = dataclasses.replace(tuning, team=2 * tuning.team)


def _fills_evenly(thread_blocks: int) -> bool:
    """Whether large thread blocks, one to a multiprocessor, leave few of these idle at the end."""
    rounds = -(-thread_blocks // _MULTIPROCESSORS)
    return thread_blocks >= 0.9 * rounds * _MULTIPROCESSORS
