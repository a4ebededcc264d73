"""Where a thread block's shared memory has what, see `body.scratch`."""

import dataclasses
import itertools
from collections.abc import Sequence

from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import BOOK, SCALARS, KernelSpec
from pallas_kernels.layout import layouts

__all__ = ["OPERANDS", "PAIRS", "SUMS", "Regions", "counts_pairs", "row_of"]

OPERANDS = 16  # words of a lane's right operands of a plane: of one set of queries
PAIRS = BOOK * BOOK  # of centroids of keys and values, two a word
_FEWEST = 24  # blocks of a thread block whose pairs of centroids are worth counting
SUMS = 16  # a lane's sums of the channels of a plane


def row_of(parts: Sequence[KernelSpec]) -> KernelSpec:
    """The spec that parts in one loop have in common, see `body.parts_s8`.

    Their classes stand in a row, each with as many code planes as its part has halves.
    """
    classes = tuple(
        dataclasses.replace(
            packed,
            key=packed.key.of_planes(part.halves),
            value=packed.value.of_planes(part.halves),
        )
        for part in parts
        for packed in part.classes
    )
    return dataclasses.replace(
        parts[0], head_dim=parts[0].plane_dim, classes=classes, part="", others=()
    )


def counts_pairs(row: KernelSpec, packed: Packed) -> bool:
    """Whether a class without bits of a row is counted by pair of centroids, see `CentroidPairs`.

    If it is long and all queries see the same of it.
    """
    key, value, tuning = packed.key, packed.value, row.tuning
    if key.bits or not (key.codebook and value.codebook):
        return False
    if row.windowed or row.biased or row.logits_soft_cap is not None:
        return False
    if tuning.team < max(tuning.warps, BOOK // 32) or sum(not x.key.bits for x in row.classes) > 1:
        return False
    return packed.blocks // tuning.splits >= _FEWEST and packed.blocks <= 255  # 16 bits a pair


@dataclasses.dataclass(frozen=True)
class Regions:
    """First words of the regions, of one part of a launch or of several that one loop takes.

    Attributes:
        operands: right operands of each plane, of parts in one loop. scalars: of their queries;
            None: they lie behind the channels. books: scores by centroid.
        warps: of the warps, one after the other. warp_words: of each of them. state: in these, what
            a warp keeps of each part. queries: of each part; of several in the place of the warps,
            until they are operands. masses: weights by centroid. kept: scores. words: of all.
    """

    operands: int
    scalars: int | None
    books: int
    warps: int
    warp_words: int
    state: int
    queries: tuple[int, ...]
    masses: int
    kept: int
    words: int

    @classmethod
    def of(cls, parts: Sequence[KernelSpec]) -> "Regions":
        """Lays them out one after the other."""
        planes = sum(part.halves for part in parts) if len(parts) > 1 else 0
        first = row_of(parts) if planes else parts[0]
        warps = first.tuning.warps
        state, warp_words = first.words_before_results, first.warp_words
        of_queries = [first.block_queries * part.query_words for part in parts]
        if planes:
            warp_words = state + 32 * (SUMS * planes + 2 * (len(parts) + 1))
        sizes = {
            "operands": first.block_teams * 32 * OPERANDS * planes,
            "scalars": len(parts) * first.block_queries * SCALARS if planes else 0,
            "queries": 0 if planes else sum(of_queries),
            "books": first.book_tables * first.book_words,
            "warps": warps * warp_words,
            "masses": first.mass_tables * first.book_words,
            "kept": warps * first.kept_blocks * layouts.BLOCK,
        }
        begins = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
        words = sum(sizes.values())
        if planes and any(counts_pairs(first, packed) for packed in first.classes):  # before
            words = max(words, begins["warps"] + PAIRS // 2)
        queries = begins["warps" if planes else "queries"]
        return cls(
            operands=begins["operands"],
            scalars=begins["scalars"] if planes else None,
            books=begins["books"],
            warps=begins["warps"],
            warp_words=warp_words,
            state=state,
            queries=tuple(itertools.accumulate(of_queries[:-1], initial=queries)),
            masses=begins["masses"],
            kept=begins["kept"],
            words=words,
        )
