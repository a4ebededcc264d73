"""Blocks of a packed bank by byte products, for up to eight queries of a KV head at once.

A block's codes are made into bytes once for all queries. Loops over blocks derive from `S8Blocks`:
`PackedS8` over those of a bank, others over the blocks of classes and parts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from pallas_kernels.attention.body.block_softmax import BlockWeights, num_totals
from pallas_kernels.attention.body.centre_ids import Ids
from pallas_kernels.attention.body.class_row import ChosenBlock
from pallas_kernels.attention.body.codebook import BookMasses
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.attention.body.packed_values import PackedValues
from pallas_kernels.attention.body.s8_products import S8Products
from pallas_kernels.attention.body.s8_queries import S8Queries
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOWEST, SAME_QUERY
from pallas_kernels.layout.layouts import BLOCK, Plane

__all__ = ["LoadRow", "S8Blocks"]

LoadRow = Callable[[Plane, int], Sequence[Value]]  # of a plane and a row of it
IdsOfSides = dict[str, Sequence[Ids]]  # of keys and of values


class S8Blocks:
    """Adds single blocks to the running sums of all sets of queries.

    Operands: those of the classes it uses. All positions of the bank share their tables.
    """

    _sides = ("key", "value")  # that are read
    masses: Sequence[BookMasses] = ()  # of each set, of values with a codebook

    @property
    def _num_channels(self) -> int:
        """Sums of channels of a lane, for each set."""
        return self._spec.head_dim // 8

    @property
    def _as_sums(self) -> bool:
        """Whether scores stay the sums that they are made of, for the softmax to measure."""
        spec = self._spec
        plain = not self._packed.key.signs and spec.logits_soft_cap is None
        return plain and not spec.biased and spec.task == "attention"

    def __init__(self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work):
        """Keeps what the methods need."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        self.queries = S8Queries(ops, spec, packed, work)
        self.products = S8Products(ops, spec, work)
        rows = range(0, spec.head_dim, 8)
        self.values = PackedValues(ops, spec, packed, work, work.g, rows, SAME_QUERY)

    def add_chosen(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        blocks: ChosenBlock,
        following: ChosenBlock,
        ahead: Sequence[Value],
        load_rows: Mapping[str, LoadRow],
        sums: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        """The sums with a block added, and the words of the following one's positions.

        Args:
            scratch, queries, sums: see `add_blocks`. blocks: the block, whose class this is.
            following: the next one. ahead: words of the block's positions.
            load_rows: of each side, see `S8Products`.
        """
        self._blocks = blocks
        ids = self._spread_scales(scratch, ahead)
        words = self.load_chosen(following)
        sums, weights = self._weigh(
            scratch, queries, blocks.block, WHOLE, sums, load_rows["key"], ids
        )
        self._ops.warp_barrier()
        return self._add_values(scratch, sums, weights, load_rows["value"]), words

    def load_chosen(self, blocks: ChosenBlock) -> list[Value]:
        """Words of a block's positions, of keys and of values."""
        return [word for x in self._sides for word in blocks.load_position_words(x, blocks.block)]

    def add_centroids(
        self, queries: list[FoldedQuery], blocks: PackedBlocks, sums: Sequence[Value]
    ) -> list[Value]:
        """The sums with blocks added of tokens of which nothing but their centroids is kept."""
        ops, packed, self._blocks = self._ops, self._packed, blocks

        load = functools.partial(blocks.load_nearest_ids, self._sides)

        def step(i, carried):
            block, words = ops.add(blocks.first, i), carried[len(sums) :]
            following = load(ops.add(block, 1))
            split = packed.key.id_words
            of_key, of_value = (
                self.products.ids(mine, coding)
                for mine, coding in ((words[:split], packed.key), (words[split:], packed.value))
            )
            scores = [query.centroid_scores(ops, of_key, BLOCK // 8) for query in queries]
            scores = self._hide(block, self._biased(block, scores))
            new = []
            for number, of_set in enumerate(scores):
                totals, channels = self._of_set(carried, number)
                masses = self.masses[number] if self.masses else None
                totals, old = self.products.softmax.weigh_centroids(
                    totals, of_set, of_value, masses
                )
                new += [*totals, *(ops.fmul(x, old) for x in channels)]
            return [*new, *following]

        count = ops.sub(blocks.last, blocks.first)
        return ops.loop(count, [*sums, *load(blocks.first)], step)[: len(sums)]

    def _weigh(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        quarters: int,
        sums: Sequence[Value],
        load_row: LoadRow,
        ids: IdsOfSides,
    ) -> tuple[list[Value], list[BlockWeights]]:
        """The sums with new totals, and each set's weights, left in scratch; a barrier is due."""
        value = self._packed.value
        scores = self._scores(scratch, queries, block, quarters, load_row, ids["key"])
        of_values = self._value_scales(scratch, quarters), ids["value"][: 8 * quarters]
        new, found = [], []
        for number, (query, of_set) in enumerate(zip(queries, scores, strict=True)):
            totals, channels = self._of_set(sums, number)
            unit = query.unit if self._as_sums else None
            masses = self.masses[number] if self.masses else None
            totals, weights = self.products.weigh(totals, of_set, unit, value, *of_values, masses)
            new += [*totals, *channels]
            found.append(weights)
        self._ops.warp_barrier()  # weights take the place of what the lanes have read by now
        for number, weights in enumerate(found):
            scratch.store_weights(number, weights.operands)
        return new, found

    def _add_values(
        self,
        scratch: Scratch,
        sums: Sequence[Value],
        weights: list[BlockWeights],
        load_row: LoadRow,
    ) -> list[Value]:
        """The sums with new channels."""
        loaded = []
        for number, of_set in enumerate(weights):
            halves = range(len(of_set.operands) // 4)
            words = [scratch.load_weights(number, half) for half in halves]
            loaded.append(dataclasses.replace(of_set, operands=words))
        old = [self._of_set(sums, number) for number in range(len(loaded))]
        channels = self.products.add_values(
            [x for _, x in old], loaded, self._packed.value, load_row
        )
        return [x for (totals, _), new in zip(old, channels, strict=True) for x in (*totals, *new)]

    def _of_set(self, sums: Sequence[Value], number: int) -> tuple[list[Value], list[Value]]:
        """A set's totals and channels."""
        first = num_totals(self._packed.value)
        size = first + self._num_channels
        of_set = list(sums[size * number : size * (number + 1)])
        return of_set[:first], of_set[first:]

    def _load_position_words(self, block: Value) -> list[Value]:
        """Words of the positions of a block, of keys and of values."""
        return [word for x in self._sides for word in self._blocks.load_position_words(x, block)]

    def _spread_scales(self, scratch: Scratch, words: Sequence[Value]) -> IdsOfSides:
        """Leaves the scales of `_load_position_words` for all lanes, and what they wrote before.

        Returns the centroids of each side's positions 8 p + g; none where all have one.
        """
        if words:  # they take the place of what was exchanged for the block before
            self._ops.warp_barrier()
        at, ids = 0, {}
        for name in self._sides:
            coding = getattr(self._packed, name)
            scales = at + coding.scale_bits // 4
            stop = at + coding.position_words
            if coding.signs:
                scratch.spread_scales(name, self._blocks.decode_scales(words[at:scales], coding))
            numbers = words[scales:stop]
            ids[name] = self.products.ids(numbers, coding)
            at = stop
        self._ops.warp_barrier()
        return ids

    def _scores(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        quarters: int,
        load_row: LoadRow,
        ids: Sequence[Ids],
    ) -> list[list[Value]]:
        """Each set's scores of the first quarters of a block, those that are not visible hidden."""
        key = self._packed.key

        def load_scales(i, q):
            return scratch.load_scales("key", i, q) if key.signs else []

        scores = self.products.scores(
            queries, key, quarters, load_row, load_scales, ids, self._as_sums
        )
        return self._hide(block, self._biased(block, scores))

    def _biased(self, block: Value, scores: list[list[Value]]) -> list[list[Value]]:
        return self._blocks.add_bias(block, scores, self._work.g, 8)

    def _hide(
        self, block: Value, scores: list[list[Value]], hidden: float = 2 * LOWEST
    ) -> list[list[Value]]:
        return self._blocks.hide(block, scores, self._work.g, 8, hidden)

    def _value_scales(self, scratch: Scratch, quarters: int) -> list[Value]:
        """The scales at positions 8 p + g of the first quarters, in order; none for level codes."""
        if not self._packed.value.signs:
            return []
        scales: list[Value] = [None] * (8 * quarters)
        for first in range(0, 2 * quarters, 4):
            for q in range(4):
                for i, scale in enumerate(scratch.load_scales("value", first, q), first):
                    if i < 2 * quarters:
                        scales[4 * i + q] = scale
        return scales
