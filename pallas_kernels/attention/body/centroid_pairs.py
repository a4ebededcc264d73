"""Tokens without bits of a long bank with codebooks, counted by pair of centroids.

A token without bits is the number of its key's centroid and that of its value's. So the weight of
each centroid of values is a product of the weights of keys' centroids, of a query, and the counts
of pairs, which no query changes: 65,536 numbers of 16 bits in shared memory, where other regions
will be afterwards. A token costs one addition instead of a look-up, a power and an addition for
each query.
"""

import functools

from pallas_kernels.attention.body.codebook import BookMasses
from pallas_kernels.attention.body.packed_blocks import PackedBlocks
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import BOOK, SET, KernelSpec
from pallas_kernels.attention.regions import PAIRS
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOWEST, warp_max_float, warp_sum
from pallas_kernels.layout.layouts import BLOCK

__all__ = ["CentroidPairs"]

_ROW_BYTES = 2 * BOOK  # counts of a centroid of keys
_COLUMNS = BOOK // 32  # centroids of values of a lane


class CentroidPairs:
    """Sums over a class without bits. All warps of a thread block are a team, and take part.

    Args:
        ops, spec, work: of the kernel. scratch: whose tables of scores are filled; regions behind
            them are not in use.
    """

    def __init__(self, ops: Operations, spec: KernelSpec, work: Work, scratch: Scratch):
        """Keeps what the methods need."""
        self._ops, self._spec, self._work, self._scratch = ops, spec, work, scratch
        self._counts = scratch.pairs()
        self._rows = BOOK // spec.tuning.warps  # centroids of keys of a warp
        self._first_row = ops.mad(work.warp, self._rows, 0)

    def sums(self, blocks: PackedBlocks, masses: BookMasses) -> list[Value]:
        """Greatest score, mass and 0, as `block_softmax.empty_sums` orders them.

        Args:
            blocks: the warp's share of the class. masses: of the only set of queries, where weights
                by centroid are left; not cleared yet.
        """
        ops, work = self._ops, self._work
        self._clear()
        ops.barrier()
        self._count(blocks)
        ops.barrier()
        tops, weights = zip(*self._weights(self._seen()), strict=True)
        of_queries = self._products(list(weights))
        ops.barrier()  # other regions begin
        masses.clear()
        for query, sums in enumerate(of_queries):
            _, floats = self._scratch.book_masses(query)
            at = ops.mad(work.lane, 4 * _COLUMNS, floats)
            for i in range(0, _COLUMNS, 4):
                ops.store_shared4(at, 4 * i, [ops.as_bits(x) for x in sums[i : i + 4]])
        ops.warp_barrier()
        totals = [warp_sum(ops, functools.reduce(ops.fadd, sums)) for sums in of_queries]
        top, mass = (
            ops.from_bits(work.mine([ops.as_bits(x) for x in of_all])) for of_all in (tops, totals)
        )
        return [top, ops.where_less_float(work.g, 1, mass, 0.0), 0.0]

    def _clear(self) -> None:
        """Makes all counts zero."""
        ops, warps = self._ops, self._spec.tuning.warps
        at = ops.mad(ops.mad(self._work.warp, 32, self._work.lane), 16, self._counts)

        def clear(i, _):
            ops.store_shared4(ops.mad(i, 16 * 32 * warps, at), 0, [0] * 4)
            return []

        ops.loop(2 * PAIRS // (16 * 32 * warps), [], clear)

    def _count(self, blocks: PackedBlocks) -> None:
        """Adds this warp's tokens."""
        ops, work = self._ops, self._work
        load = functools.partial(blocks.load_nearest_ids, ("key", "value"))

        def step(i, words):
            block = ops.add(blocks.first, i)
            following = load(ops.add(block, 1))
            left = ops.sub(ops.sub(blocks.length, ops.mad(block, BLOCK, 0)), work.place)
            for token in range(BLOCK // 32):
                key, value = (
                    ops.bytes(of_side[token // 4], 0, 0x4440 + token % 4)
                    for of_side in (words[:2], words[2:])
                )
                at = ops.mad(key, _ROW_BYTES, self._counts)
                at = ops.mad(ops.shift_right(value, 1), 4, at)
                one = ops.mad(ops.bit_and(value, 1), 0xFFFF, 1)  # of the upper half: 1 << 16
                ops.add_shared(at, 0, ops.where_less(32 * token, left, one, 0))
            return following

        ops.loop(ops.sub(blocks.last, blocks.first), load(blocks.first), step)

    def _row(self, number: Value) -> list[Value]:
        """This lane's words of a row of the warp."""
        ops = self._ops
        at = ops.mad(ops.add(self._first_row, number), _ROW_BYTES, self._counts)
        return ops.load_shared4(ops.mad(self._work.lane, 16, at), 0)

    def _seen(self) -> Value:
        """A word, 0 where no key has the centroid of this lane's row."""
        ops = self._ops

        def step(i, carried):
            found = functools.reduce(lambda a, b: ops.bit_select(a, a, b), self._row(i))
            none = ops.equal(ops.ballot(found), 0)
            return [ops.mad(ops.equal(self._work.lane, i), ops.sub(1, none), carried[0])]

        return ops.loop(self._rows, [0], step)[0]

    def _weights(self, seen: Value) -> list[tuple[Value, Value]]:
        """The greatest score of the warp's rows and the weight of this lane's, for each query."""
        ops, found = self._ops, []
        row = ops.add(self._first_row, ops.min(self._work.lane, self._rows - 1))
        for query in range(SET):
            table = self._scratch.book_table(min(query, self._spec.tuning.queries - 1))
            score = ops.load_shared(ops.mad(row, 4, table), 0)
            score = ops.where_less_float(0, seen, score, LOWEST)
            top = warp_max_float(ops, score)
            found.append((top, ops.exp2(ops.fsub(score, top))))
        return found

    def _products(self, weights: list[Value]) -> list[list[Value]]:
        """Weights of this lane's centroids of values, over the warp's rows, for each query."""
        ops = self._ops

        def step(i, carried):
            counts = []
            for word in self._row(i):
                halves = ops.bit_and(word, 0xFFFF), ops.shift_right(word, 16)
                counts += [ops.to_float(x) for x in halves]
            new = []
            for query, weight in enumerate(weights):
                own = ops.from_bits(ops.take(ops.as_bits(weight), i))
                sums = carried[_COLUMNS * query : _COLUMNS * (query + 1)]
                new += [ops.fma(x, own, y) for x, y in zip(counts, sums, strict=True)]
            return new

        found = ops.loop(self._rows, [0.0] * (SET * _COLUMNS), step)
        return [list(found[i : i + _COLUMNS]) for i in range(0, len(found), _COLUMNS)]
