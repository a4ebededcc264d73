"""A warp's part of attention over a packed bank, for one query: all that it carries in registers.

Blocks that share all tables form a chunk: the query's bit planes are made anew for each, and levels
of values are applied to its sums.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

from pallas_kernels.attention.body.b1_products import B1Products
from pallas_kernels.attention.body.block_softmax import empty_sums, num_totals
from pallas_kernels.attention.body.centre_ids import Ids
from pallas_kernels.attention.body.codebook import BookMasses
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.attention.body.packed_query import PackedQuery
from pallas_kernels.attention.body.packed_values import PackedValues
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import ALL_LANES, LOWEST, join_planes, merge
from pallas_kernels.layout.layouts import BLOCK, Plane

__all__ = ["PackedB1", "Words"]

# Words of one code plane of a block, and of its positions, see `load_position_words`.
Words = tuple[list[Value], list[Value]]


class PackedB1:
    """`run()` does the work. Operands: those of the classes it uses.

    Where a block's scores come from, and what is made of them, lies in methods of their own, for
    `score_range` and `calibrated_b1`.
    """

    _sides = ("key", "value")  # that are read
    masses: BookMasses | None = None  # of values with a codebook

    def __init__(self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work):
        """Keeps what the methods need."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        self.products = B1Products(ops, spec, work)
        channels = [64 * h + 8 * r for h in range(spec.head_dim // 64) for r in (0, 1)]
        self.values = PackedValues(ops, spec, packed, work, work.channel, channels, ALL_LANES)

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result."""
        ops, packed, self._scratch = self._ops, self._packed, scratch
        size = packed.chunk_blocks
        self._load_query()
        blocks = PackedBlocks(ops, self._spec, packed, self._work)
        ahead = self.load_ahead(blocks)
        num_ahead = len(ahead)
        if "value" in self._sides:
            self.values.prefetch_tables()
        self._prepare_query()
        first_chunk = ops.div(blocks.first, size)
        chunks = ops.sub(ops.div(ops.add(blocks.last, size - 1), size), first_chunk)
        chunks = ops.where_less(blocks.first, blocks.last, chunks, 0)

        def chunk(i, carried):
            block, *rest = carried
            ahead, total = rest[:num_ahead], rest[num_ahead:]
            folded = self._fold(block)
            stop = ops.min(blocks.last, ops.mad(ops.add(first_chunk, i), size, size))
            ahead, sums = self.add_blocks(folded, block, stop, ahead, self._empty())
            return [stop, *ahead, *self._join(total, sums, folded.offset, block)]

        empty = self._empty_total()
        total = ops.loop(chunks, [blocks.first, *ahead, *empty], chunk)[1 + num_ahead :]
        self.leave(scratch, total)

    def load_ahead(self, blocks: PackedBlocks) -> list[Value]:
        """The first words of the first of the warp's blocks, if it is a whole one."""
        self._blocks, whole = blocks, self._packed.whole_blocks
        if not whole:
            return []
        return _flat(self._load_first(self._ops.min(blocks.first, whole - 1)))

    def add_blocks(
        self,
        query: FoldedQuery,
        block: Value,
        stop: Value,
        ahead: Sequence[Value],
        sums: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        """The first words of block `stop`, and the sums with the blocks before it added.

        Args:
            query: as the products take it. block: the first one. ahead: its first words.
            sums: so far.
        """
        ops, packed, num_ahead = self._ops, self._packed, len(ahead)

        def step(_, carried):
            block, *rest = carried
            return self._block(query, block, rest[:num_ahead], rest[num_ahead:])

        if packed.whole_blocks:
            count = ops.sub(ops.min(stop, packed.whole_blocks), block)
            _, *rest = ops.loop(count, [block, *ahead, *sums], step)
            ahead, sums = rest[:num_ahead], rest[num_ahead:]
        if packed.quarters:
            cut_short = ops.where_less(packed.whole_blocks, stop, 1, 0)
            sums = ops.cond(cut_short, sums, lambda sums: self._rest(query, sums))
        return list(ahead), list(sums)

    def add_centroids(
        self, query: FoldedQuery, blocks: PackedBlocks, sums: Sequence[Value]
    ) -> list[Value]:
        """The sums with blocks added of tokens of which nothing but their centroids is kept."""
        ops, packed, self._blocks = self._ops, self._packed, blocks
        first, count = num_totals(packed.value), BLOCK // 32

        load = functools.partial(blocks.load_nearest_ids, self._sides)

        def step(i, carried):
            block, words = ops.add(blocks.first, i), carried[len(sums) :]
            following = load(ops.add(block, 1))
            split = packed.key.id_words
            of_key, of_value = (
                self.products.ids(mine, coding, count)
                for mine, coding in ((words[:split], packed.key), (words[split:], packed.value))
            )
            scores = self._biased(block, query.centroid_scores(ops, of_key, count))
            scores = self._hide(block, scores)
            totals, old = self.products.softmax.weigh_centroids(
                carried[:first], scores, of_value, self.masses
            )
            channels = [ops.fmul(x, old) for x in carried[first : len(sums)]]
            return [*totals, *channels, *following]

        number = ops.sub(blocks.last, blocks.first)
        return ops.loop(number, [*sums, *load(blocks.first)], step)[: len(sums)]

    def _load_query(self) -> None:
        self._query = PackedQuery(self._ops, self._spec, self._packed, self._work, 0)

    def _prepare_query(self) -> None:
        self._query.prepare()

    def _fold(self, block: Value) -> FoldedQuery:
        """The query for the chunk of a block, as the products take it."""
        return self.products.encode(self._query.fold(block, self.products.greatest_query))

    def _block(
        self, query: FoldedQuery, block: Value, ahead: Sequence[Value], sums: Sequence[Value]
    ) -> list[Value]:
        """A whole block: its first words are in registers, the next one's on their way at the end.

        So two planes' words are in registers at a time, whatever the number of planes.
        """
        ops = self._ops
        if self._loops_over_planes:
            return self._block_by_planes(query, block, ahead, sums)
        split = len(ahead) - getattr(self._packed, self._sides[0]).position_words
        following = ops.add(block, 1)

        def load_following() -> Words:
            return self._load_first(ops.min(following, ops.sub(self._blocks.last_whole, 1)))

        first = (list(ahead[:split]), list(ahead[split:]))
        words = _one_ahead(first, [*self._loads(block, WHOLE)[1:], load_following])
        sums = self._add(sums, self._scores(query, block, WHOLE, words), block, words)
        return [following, *_flat(next(words)), *sums]

    @property
    def _loops_over_planes(self) -> bool:
        """Whether planes are a loop of the kernel's, so that its instructions stay in their cache.

        This holds for classes of tokens: loops over one, two and three planes do not fit together.
        """
        packed = self._packed
        return packed.of_classes > 0 and self._spec.halves == 1 and packed.most_bits > 1

    def _block_by_planes(
        self, query: FoldedQuery, block: Value, ahead: Sequence[Value], sums: Sequence[Value]
    ) -> list[Value]:
        """`_block`, plane after plane: while one is in the products the next one is on its way."""
        ops, blocks, packed = self._ops, self._blocks, self._packed
        split = len(ahead) - packed.key.position_words
        words, of_keys = list(ahead[:split]), ahead[split:]
        following = ops.add(block, 1)
        next_block = ops.min(following, ops.sub(blocks.last_whole, 1))
        first = Plane(0, 0, 0)
        ends = {
            "key": blocks.whole_rows("value", block, first),
            "value": blocks.whole_rows("key", next_block, first),
        }

        def over_planes(
            name: str, words: Sequence[Value], count: int, product: Callable[..., list[Value]]
        ) -> tuple[list[Value], list[Value]]:
            """The operands behind a side's planes, and the sum of `count` products over them."""
            bits = getattr(packed, name).bits

            def add(number, carried):
                words, totals, weight = carried[:split], carried[split:-1], carried[-1]
                more = ops.add(number, 1)
                address = blocks.whole_rows(name, block, Plane(ops.min(more, bits - 1), 0, 0))
                address = ops.where_less_address(more, bits, address, ends[name])
                loaded = blocks.load_whole_rows(address)
                found = zip(product(words), totals, strict=True)
                totals = [ops.fma(x, weight, total) for x, total in found]
                return [*loaded, *totals, ops.fmul(weight, 2.0)]

            carried = ops.loop(bits, [*words, *([0.0] * count), 1.0], add)
            return carried[:split], carried[split:-1]

        of_values = blocks.load_position_words("value", block)
        words, found = over_planes(
            "key", words, BLOCK // 32, lambda words: self.products.key_sums(query, words, 0)
        )
        scores = query.scores(
            ops, packed.key, found, *self._decode(of_keys, packed.key, len(found))
        )
        scores = self._hide(block, self._biased(block, scores))
        of_following = blocks.load_position_words("key", next_block)
        num = num_totals(packed.value)
        totals, weights = self.products.weigh(
            sums[:num],
            scores,
            packed.value,
            *self._decode(of_values, packed.value, len(scores)),
            self.masses,
        )
        words, found = over_planes(
            "value",
            words,
            self._spec.head_dim // 32,
            lambda words: self.products.value_sums(words, weights),
        )
        channels = self.products.add_values(sums[num:], weights, found)
        return [following, *words, *of_following, *totals, *channels]

    def _rest(self, query: FoldedQuery, sums: Sequence[Value]) -> list[Value]:
        """The block that is cut short: less to load, fewer products."""
        block, quarters = self._packed.whole_blocks, self._packed.quarters
        first, *others = self._loads(block, quarters)
        words = _one_ahead(first(), others)
        return self._add(sums, self._scores(query, block, quarters, words), block, words)

    def _loads(self, block: Value, quarters: int) -> list[Callable[[], Words]]:
        """Functions that load each plane's words of a block, in the order of their use."""
        return [
            lambda name=name, plane=plane: self._load(name, block, quarters, plane)
            for name in self._sides
            for plane in self._spec.planes(getattr(self._packed, name))
        ]

    def _load_first(self, block: Value) -> Words:
        """The first of a whole block's words."""
        name = self._sides[0]
        first, *_ = self._spec.planes(getattr(self._packed, name))
        return self._load(name, block, WHOLE, first)

    def _load(self, name: str, block: Value, quarters: int, plane: Plane) -> Words:
        """Words of one plane, beside those of the first one those of its positions."""
        rows = self._blocks.load_rows(name, block, quarters, plane)
        words = [word for row in rows for word in row]
        return words, [] if plane.number else self._blocks.load_position_words(name, block)

    def _scores(
        self, query: FoldedQuery, block: Value, quarters: int, words: Iterator[Words]
    ) -> list[Value]:
        """Scores less what they have in common, of padding too."""
        del quarters  # told by the words
        ops, key = self._ops, self._packed.key
        planes = self._spec.planes(key)
        of_planes, of_positions = [], []
        for plane in planes:
            of_plane, loaded = next(words)
            of_positions = of_positions if plane.number else loaded
            of_planes.append(self.products.key_sums(query, of_plane, plane.half))
        sums = join_planes(ops, planes, of_planes)
        scores = query.scores(ops, key, sums, *self._decode(of_positions, key, len(sums)))
        return self._biased(block, scores)

    def _decode(
        self, words: Sequence[Value], coding: Coding, count: int
    ) -> tuple[list[Value], Sequence[Ids]]:
        """Scales and centroids of `count` of the lane's positions, none of either for none."""
        scales = self._blocks.decode_scales(words, coding)[:count]
        return scales, self.products.ids(words[coding.scale_bits // 4 :], coding, count)

    def _biased(self, block: Value, scores: list[Value]) -> list[Value]:
        (scores,) = self._blocks.add_bias(block, [scores], self._work.place, 32)
        return scores

    def _hide(self, block: Value, scores: list[Value], hidden: float = 2 * LOWEST) -> list[Value]:
        (scores,) = self._blocks.hide(block, [scores], self._work.place, 32, hidden)
        return scores

    # Use of scores --------------------------------------------------------------------------------

    def _empty(self) -> list[Value]:
        """Sums over no block of a chunk."""
        return empty_sums(self._packed.value, self._spec.head_dim // 32)

    def _empty_total(self) -> list[Value]:
        """A result over no chunk."""
        return [LOWEST, 0.0] + [0.0] * (self._spec.head_dim // 32)

    def _add(
        self, sums: Sequence[Value], scores: list[Value], block: Value, words: Iterator[Words]
    ) -> list[Value]:
        """The sums with a block added, whose words of values come next."""
        ops, value = self._ops, self._packed.value
        scores = self._hide(block, scores)
        of_plane, of_positions = next(words)
        of_positions = self._decode(of_positions, value, len(scores))
        first = num_totals(value)
        totals, weights = self.products.weigh(
            sums[:first], scores, value, *of_positions, self.masses
        )
        planes, halves = self._spec.planes(value), self._spec.halves
        of_planes = [self.products.value_sums(of_plane, weights)]
        for _ in planes[1:]:
            of_planes.append(self.products.value_sums(next(words)[0], weights))
        products = [
            x
            for half in range(halves)
            for x in join_planes(ops, planes[half::halves], of_planes[half::halves])
        ]
        return [*totals, *self.products.add_values(sums[first:], weights, products)]

    def _join(self, total: Sequence[Value], sums, offset: Value, block: Value) -> list[Value]:
        """The result with a chunk's sums added."""
        found = self.values.decode(sums, offset, self.values.levels(block))
        return merge(self._ops, [total, found])

    def leave(self, scratch: Scratch, total: Sequence[Value]) -> None:
        """Leaves the result for the team."""
        once = self._ops.where_less(self._work.lane, 1, 1, 0)
        self.values.store(scratch, 0, total, self.values.centres(), where=1, once=once)


def _one_ahead(first: Words, loads: Sequence[Callable[[], Words]]) -> Iterator[Words]:
    """`first`, then what each of `loads` loads: asked for when the one before is handed out."""
    for load in loads:
        following = load()
        yield first
        first = following
    yield first


def _flat(words: Words) -> list[Value]:
    return [*words[0], *words[1]]
