"""A warp's part of attention over a packed bank, for one query: all that it carries in registers.

Blocks that share all tables form a chunk: the query's bit planes are made anew for each, and levels
of values are applied to its sums.
"""

from collections.abc import Callable, Iterator, Sequence

from pallas_kernels.b1_products import B1Products
from pallas_kernels.block_softmax import TOTALS, empty_sums
from pallas_kernels.folded_query import FoldedQuery
from pallas_kernels.operations import Operations, Value
from pallas_kernels.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.packed_query import PackedQuery
from pallas_kernels.packed_values import PackedValues
from pallas_kernels.problem import Packed, Plane, Problem
from pallas_kernels.scratch import Scratch
from pallas_kernels.warp_math import ALL_LANES, LOWEST, join_planes, merge
from pallas_kernels.work import Work

__all__ = ["PackedB1", "Words"]

Words = tuple[list[Value], list[Value]]  # of one code plane of a block, and the block's scales


class PackedB1:
    """`run()` does the work. Operands: those of the classes it uses.

    Where a block's scores come from, and what is made of them, lies in methods of their own, for
    `score_range` and `calibrated_b1`.
    """

    _sides = ("key", "value")  # that are read

    def __init__(self, ops: Operations, problem: Problem, packed: Packed, work: Work):
        """Keeps what the methods need."""
        self._ops, self._problem, self._packed, self._work = ops, problem, packed, work
        self._products = B1Products(ops, problem, work)
        channels = [64 * h + 8 * r for h in range(problem.head_dim // 64) for r in (0, 1)]
        self._values = PackedValues(ops, problem, packed, work, work.channel, channels, ALL_LANES)

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result."""
        ops, packed, self._scratch = self._ops, self._packed, scratch
        size = packed.chunk_blocks
        self._load_query()
        blocks = self._blocks = PackedBlocks(ops, self._problem, packed, self._work)
        ahead = []
        if packed.whole_blocks:
            ahead = _flat(self._load_first(ops.min(blocks.first, packed.whole_blocks - 1)))
        num_ahead = len(ahead)
        if "value" in self._sides:
            self._values.prefetch_tables()
        self._prepare_query()
        first_chunk = ops.div(blocks.first, size)
        chunks = ops.sub(ops.div(ops.add(blocks.last, size - 1), size), first_chunk)
        chunks = ops.where_less(blocks.first, blocks.last, chunks, 0)

        def chunk(i, carried):
            block, *rest = carried
            ahead, total = rest[:num_ahead], rest[num_ahead:]
            folded = self._fold(block)
            stop = ops.min(blocks.last, ops.mad(ops.add(first_chunk, i), size, size))
            sums = self._empty()

            def step(_, carried):
                block, *rest = carried
                return self._block(folded, block, rest[:num_ahead], rest[num_ahead:])

            if packed.whole_blocks:
                count = ops.sub(ops.min(stop, packed.whole_blocks), block)
                _, *rest = ops.loop(count, [block, *ahead, *sums], step)
                ahead, sums = rest[:num_ahead], rest[num_ahead:]
            if packed.quarters:
                cut_short = ops.where_less(packed.whole_blocks, stop, 1, 0)
                sums = ops.cond(cut_short, sums, lambda sums: self._rest(folded, sums))
            return [stop, *ahead, *self._join(total, sums, folded.offset, block)]

        empty = self._empty_total()
        total = ops.loop(chunks, [blocks.first, *ahead, *empty], chunk)[1 + num_ahead :]
        self._leave(total)

    def _load_query(self) -> None:
        self._query = PackedQuery(self._ops, self._problem, self._packed, self._work, 0)

    def _prepare_query(self) -> None:
        self._query.prepare()

    def _fold(self, block: Value) -> FoldedQuery:
        """The query for the chunk of a block, as the products take it."""
        return self._products.encode(self._query.fold(block, self._products.greatest_query))

    def _block(
        self, query: FoldedQuery, block: Value, ahead: Sequence[Value], sums: Sequence[Value]
    ) -> list[Value]:
        """A whole block: its first words are in registers, the next one's on their way at the end.

        So two planes' words are in registers at a time, whatever the number of planes.
        """
        ops = self._ops
        split = len(ahead) - getattr(self._packed, self._sides[0]).scale_bits // 4
        following = ops.add(block, 1)

        def load_following() -> Words:
            return self._load_first(ops.min(following, ops.sub(self._blocks.last_whole, 1)))

        first = (list(ahead[:split]), list(ahead[split:]))
        words = _one_ahead(first, [*self._loads(block, WHOLE)[1:], load_following])
        sums = self._add(sums, self._scores(query, block, WHOLE, words), block, words)
        return [following, *_flat(next(words)), *sums]

    def _rest(self, query: FoldedQuery, sums: Sequence[Value]) -> list[Value]:
        """The block that is cut short: less to load, fewer products."""
        block, quarters = self._packed.whole_blocks, self._packed.quarters
        first, *others = self._loads(block, quarters)
        words = _one_ahead(first(), others)
        return self._add(sums, self._scores(query, block, quarters, words), block, words)

    def _loads(self, block: Value, quarters: int) -> list[Callable[[], Words]]:
        """What loads each plane's words of a block, in the order in which they are used."""
        return [
            lambda name=name, plane=plane: self._load(name, block, quarters, plane)
            for name in self._sides
            for plane in self._problem.planes(getattr(self._packed, name))
        ]

    def _load_first(self, block: Value) -> Words:
        """The first of a whole block's words."""
        name = self._sides[0]
        first, *_ = self._problem.planes(getattr(self._packed, name))
        return self._load(name, block, WHOLE, first)

    def _load(self, name: str, block: Value, quarters: int, plane: Plane) -> Words:
        """Words of one plane, beside those of the first one the scales."""
        rows = self._blocks.load_rows(name, block, quarters, plane)
        words = [word for row in rows for word in row]
        return words, [] if plane.number else self._blocks.load_scales(name, block)

    def _scores(
        self, query: FoldedQuery, block: Value, quarters: int, words: Iterator[Words]
    ) -> list[Value]:
        """Scores less what they have in common, of padding too."""
        del block, quarters  # told by the words
        ops, key = self._ops, self._packed.key
        planes = self._problem.planes(key)
        of_planes, scales = [], []
        for plane in planes:
            of_plane, loaded = next(words)
            scales = scales if plane.number else loaded
            of_planes.append(self._products.key_sums(query, of_plane, plane.half))
        sums = join_planes(ops, planes, of_planes)
        scales = self._blocks.decode_scales(scales, key)[: len(sums)]
        return query.scores(ops, key, sums, scales)

    def _hide(self, block: Value, scores: list[Value], hidden: float = 2 * LOWEST) -> list[Value]:
        (scores,) = self._blocks.hide(block, [scores], self._work.place, 32, hidden)
        return scores

    # What is made of scores -----------------------------------------------------------------------

    def _empty(self) -> list[Value]:
        """Sums over no block of a chunk."""
        return empty_sums(self._problem.head_dim // 32)

    def _empty_total(self) -> list[Value]:
        """A result over no chunk."""
        return [LOWEST, 0.0] + [0.0] * (self._problem.head_dim // 32)

    def _add(
        self, sums: Sequence[Value], scores: list[Value], block: Value, words: Iterator[Words]
    ) -> list[Value]:
        """The sums with a block added, whose words of values come next."""
        ops, value = self._ops, self._packed.value
        scores = self._hide(block, scores)
        of_plane, scales = next(words)
        scales = self._blocks.decode_scales(scales, value)[: len(scores)]
        totals, weights = self._products.weigh(sums[:TOTALS], scores, scales)
        planes, halves = self._problem.planes(value), self._problem.halves
        of_planes = [self._products.value_sums(of_plane, weights)]
        for _ in planes[1:]:
            of_planes.append(self._products.value_sums(next(words)[0], weights))
        products = [
            x
            for half in range(halves)
            for x in join_planes(ops, planes[half::halves], of_planes[half::halves])
        ]
        return [*totals, *self._products.add_values(sums[TOTALS:], weights, products)]

    def _join(self, total: Sequence[Value], sums, offset: Value, block: Value) -> list[Value]:
        """The result with a chunk's sums added."""
        found = self._values.decode(sums, offset, self._values.levels(block))
        return merge(self._ops, [total, found])

    def _leave(self, total: Sequence[Value]) -> None:
        """Leaves the result for the team."""
        once = self._ops.where_less(self._work.lane, 1, 1, 0)
        self._values.store(self._scratch, 0, total, self._values.centre(), where=1, once=once)


def _one_ahead(first: Words, loads: Sequence[Callable[[], Words]]) -> Iterator[Words]:
    """`first`, then what each of `loads` loads: asked for when the one before is handed out."""
    for load in loads:
        following = load()
        yield first
        first = following
    yield first


def _flat(words: Words) -> list[Value]:
    return [*words[0], *words[1]]
