"""The fixed settings of a kernel: shapes, banks, division of the work."""

import dataclasses
from typing import Any, Literal

from pallas_kernels.attention.codings import Coding, Dense, Packed
from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import Plane
from vkq_jax.settings.config import ScoreCalibration

__all__ = [
    "BOOK",
    "BOOK_STRIDE",
    "EXCHANGE_WORDS",
    "QUERY_STRIDE",
    "SCALARS",
    "SET",
    "KernelSpec",
    "Task",
    "TuningConfig",
]

Task = Literal["attention", "score range"]

SET = 4  # queries whose products are columns of one right operand, two each
QUERY_STRIDE = 36  # words from 32 channels of a query to the next ones; see `Scratch`
SCALARS = 8  # of a query, at most
BOOK = 256  # centroids that a table of scores, or of weights, has room for
# From a query's table to the next one's: lanes that ask for one centroid's entries in four of them
# do not meet; behind a table of weights is what they are relative to.
BOOK_STRIDE = BOOK + 8
EXCHANGE_WORDS = 8 * 72  # for a block's scales, or its weights of one set; see `Scratch`


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """How the work is cut. A team of warps shares the positions of a few queries of a KV head.

    Attributes:
        warps: of a thread block, a multiple of four.
        team: warps of a team within a thread block.
        splits: thread blocks that share a team's positions; each has results of its own.
        queries: queries of a team, 1 to 8.
    """

    warps: int = 4
    team: int = 4
    splits: int = 1
    queries: int = 1

    def __post_init__(self):
        """Checks that the numbers fit each other."""
        if (
            self.warps % 4
            or self.warps % self.team
            or self.splits < 1
            or not 1 <= self.queries <= 2 * SET
        ):
            raise ValueError(f"{self} does not fit together")


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """One launch.

    Attributes:
        outer: copies of the whole bank side by side (mapped axes). layers: layers of the bank, of
            which one is read. batch, kv_heads: of the bank.
        queries: queries that read each KV head, those of all positions.
        positions: query positions, each with a number of text entries that it sees.
        windowed: whether a query position sees each bank from a position of its own on.
        task: what is computed: attention, or the range of each query's scores over the packed bank.
        maps_scores: whether scores of the packed bank are multiplied by a slope of their row.
        shifts_scores: whether something of their row is added to them.
        biased: whether something of their row and slot is, the share of a key bias.
        bias_axes: axes of positions by which that is looked up; 0: it is given for each slot.
        bias_positions: positions that each of these axes has.
        entry_slots: where that is looked up, slots of whole blocks of each class, by its number.
        logits_soft_cap: of the scores of all banks, mapped ones after the map; None: no cap.
        calibration: of the scores of the packed bank, whose range the launch finds itself.
        head_dim: H, as it is stored: 64, 128 or, without dense banks, 256. A part with a learned
            dictionary has virtual channels here, up to 384.
        classes: of the packed bank, if any, alike but in their bits: dictionary codes have one for
            each class of tokens, other codes one.
        dense: the dense banks.
        tuning: how the work is cut.
        part: the start of the names of the results, where a launch has several parts with a query
            of their own.
        products: numbers of a query's products with the model's tables, which are made outside: of
            each such part its query, then the scores by centroid of a codebook.
        first_product: of the query of this part.
        others: further parts of the launch, which the same thread blocks take, each with results of
            its own.
        at_once: whether one loop takes the parts with a query of their own, see `parts_s8`; else
            they come one after the other.
    """

    batch: int
    kv_heads: int
    queries: int
    head_dim: int
    classes: tuple[Packed, ...]
    dense: tuple[Dense, ...] = ()
    outer: int = 1
    layers: int = 1
    positions: int = 1
    windowed: bool = False
    task: Task = "attention"
    maps_scores: bool = False
    shifts_scores: bool = False
    biased: bool = False
    bias_axes: int = 0
    bias_positions: int = 0
    entry_slots: tuple[int, ...] = ()
    logits_soft_cap: float | None = None
    calibration: ScoreCalibration | None = None
    tuning: TuningConfig = TuningConfig()
    part: str = ""
    products: int = 0
    first_product: int = 0
    others: tuple["KernelSpec", ...] = ()
    at_once: bool = False

    def with_options(self, **options: Any) -> "KernelSpec":
        """The launch with other values of attributes that all parts share."""
        others = tuple(dataclasses.replace(part, **options) for part in self.others)
        return dataclasses.replace(self, **options, others=others)

    @property
    def parts(self) -> tuple["KernelSpec", ...]:
        """All parts of the launch."""
        return (self, *self.others)

    @property
    def rounds(self) -> list[tuple["KernelSpec", ...]]:
        """All parts, those together that one loop takes."""
        if not self.at_once:
            return [(part,) for part in self.parts]
        own = tuple(part for part in self.parts if part.part)
        return [*((part,) for part in self.parts if not part.part), own]

    @property
    def packed(self) -> Packed | None:
        """The packed bank, or the first of its classes, if any."""
        return self.classes[0] if self.classes else None

    @property
    def heads(self) -> int:
        """KV heads of the whole launch."""
        return self.outer * self.batch * self.kv_heads

    @property
    def rows(self) -> int:
        """Queries of the whole launch."""
        return self.heads * self.queries

    @property
    def head_teams(self) -> int:
        """Teams that read each KV head."""
        return -(-self.queries // self.tuning.queries)

    @property
    def teams(self) -> int:
        """Teams that have work."""
        return self.heads * self.head_teams

    @property
    def block_teams(self) -> int:
        """Teams in a thread block."""
        return self.tuning.warps // self.tuning.team

    @property
    def block_queries(self) -> int:
        """Queries of a thread block's teams."""
        return self.block_teams * self.tuning.queries

    @property
    def grid(self) -> int:
        """Thread blocks."""
        return -(-self.teams // self.block_teams) * self.tuning.splits

    @property
    def plane_dim(self) -> int:
        """Channels of a code plane."""
        return min(self.head_dim, layouts.HEAD_DIMS[-1])

    @property
    def halves(self) -> int:
        """Code planes of a bit."""
        return self.head_dim // self.plane_dim

    def planes(self, coding: Coding) -> list[Plane]:
        """Code planes of a side, in the order in which they are stored."""
        count = coding.bits * self.halves
        return [Plane(number, *divmod(number, self.halves)) for number in range(count)]

    @property
    def joined_words(self) -> int:
        """Words of a result: channels, greatest score, mass; whole rows of banks."""
        return self.head_dim + 32

    @property
    def uses_bytes(self) -> bool:
        """Whether a packed bank's codes are made into bytes, see `S8Products`."""
        return self.packed is not None and self.tuning.queries > 1

    def stages_words(self, packed: Packed) -> bool:
        """Whether words wait in shared memory: of classes, or of one plane a side."""
        books = packed.key.codebook or packed.value.codebook  # tables take the room
        planes = self.halves if packed.of_classes else self.halves * packed.most_bits
        return planes == 1 and self.uses_bytes and not books

    @property
    def shortens_queries(self) -> bool:
        """Whether byte products leave out queries' lowest digits where they are worth little.

        Not for sign codes: what they are worth there depends on the scale of each position.
        """
        return self.packed is not None and self.uses_bytes and not self.packed.key.signs

    @property
    def sets(self) -> int:
        """Sets of at most `SET` queries in a team."""
        return -(-self.tuning.queries // SET)

    @property
    def staged_words(self) -> int:
        """Words of a block of keys, or of values, that wait in shared memory."""
        staged = any(map(self.stages_words, self.classes))
        return layouts.BLOCK * self.head_dim // 32 if staged else 0

    @property
    def key_slots(self) -> int:
        """Blocks of keys that wait there: 16 warps, of one set each, have no room for two."""
        return self.sets

    @property
    def bias_columns(self) -> int:
        """Columns that a team's queries have in a table of shares of a key bias."""
        return SET * self.sets if self.tuning.queries > 1 else 1

    @property
    def exchange_words(self) -> int:
        """Words in which the lanes of a warp exchange a block's scales and weights."""
        return EXCHANGE_WORDS * self.sets if self.uses_bytes else 0

    @property
    def warp_words(self) -> int:
        """Words of a warp: of its results, or what it needs before it has them."""
        return max(self.joined_words * self.tuning.queries, self.words_before_results)

    @property
    def words_before_results(self) -> int:
        """Words of a warp that it needs before it has results."""
        return self.exchange_words + (1 + self.key_slots) * self.staged_words

    @property
    def query_words(self) -> int:
        """Words in which a team keeps a query: channels, at most eight scalars."""
        return QUERY_STRIDE * self.head_dim // 32 + SCALARS if self.uses_bytes else 0

    @property
    def book_words(self) -> int:
        """Words of a table of all queries of a team, one for each centroid of the codebook."""
        return BOOK_STRIDE * (SET * self.sets if self.uses_bytes else 1)

    @property
    def book_tables(self) -> int:
        """Tables of scores in a thread block: a team's; of one query each warp's own."""
        if self.packed is None or not self.packed.key.codebook:
            return 0
        return self.block_teams if self.uses_bytes else self.tuning.warps

    @property
    def mass_tables(self) -> int:
        """Tables of weights by centroid: each warp's integers, then each warp's floats."""
        return 2 * self.tuning.warps if self.packed and self.packed.value.codebook else 0

    @property
    def kept_blocks(self) -> int:
        """Blocks of which a warp keeps the scores until it knows their map."""
        if self.calibration is None or self.packed is None:
            return 0
        return -(-self.packed.blocks // self.tuning.team)

    def __post_init__(self):
        """Checks what the parts do not know of each other."""
        if self.uses_bytes and self.packed.chunk_blocks < self.packed.blocks:  # type: ignore
            raise ValueError("tables in groups need one query a team")
        if self.biased and self.logits_soft_cap is not None:
            raise ValueError("a soft-cap would have to come behind a key bias")
        if self.calibration is not None and (self.uses_bytes or self.tuning.splits > 1):
            raise ValueError("a calibration in the same launch needs one query a team, no splits")
