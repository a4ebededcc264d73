"""Several queries and one block of packed keys and values, with 8-bit integer instructions.

A word `w` holds 32 codes. `w & 0x01010101 << b` is four of them, bits b, 8 + b, 16 + b and 24 + b,
as bytes of value 2^b: a left operand of `mma_u8_*` in one instruction. The 2^-b is folded into the
number that the code is multiplied by. Operands are shared by all queries, whose numbers' bytes are
the columns of right operands. A *set* is four queries q; a team has one or two:

    numbers of    column 2 q, for each set    column 2 q + 1    once, columns 2 q and 2 q + 1
    keys          upper byte                  middle byte       lower bytes, first and second set
    values        upper byte                  lower byte

(24 bits in signed digits, 16 bits unsigned), so that lane 4 g + t ends up with all bytes' sums for
query t of each set and need not ask another lane.

1. *scores* of query t at positions 8 p + g.
2. *softmax* (`BlockSoftmax`) in the lane, and over the eight that share t.
3. *values*: channels 16 m + 8 r + g of query t. Weights change lanes on the way, see
   `Scratch.store_weights`.

Of 256 channels, each half has right operands of its own for the keys; those of values serve both.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from pallas_kernels.attention.body.block_softmax import (
    BlockSoftmax,
    BlockWeights,
    add_products,
)
from pallas_kernels.attention.body.centre_ids import BookIds, BookWord, CentreIds, Ids
from pallas_kernels.attention.body.codebook import BookMasses
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.s8_sums import S8Sums
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.fixed_point import TO_INT_BITS
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import SAME_QUERY, exchange_float, join_planes
from pallas_kernels.layout.layouts import BLOCK, Plane

__all__ = ["S8Products"]

_MAX_WEIGHT = 65535.0
_VALUE_UNIT = 64.0  # a code of values counts 64 or 128


class S8Products:
    """Products of a block with the team's queries, query t of them in lanes 4 g + t."""

    def __init__(self, ops: Operations, spec: KernelSpec, work: Work):
        """Computes what depends on the lane only."""
        self._ops, self._spec, self._work = ops, spec, work

        def power(exponent: Value) -> Value:  # 2^-exponent
            return ops.from_bits(ops.shift_left(ops.sub(127, exponent), 23))

        odd = ops.bit_and(work.g, 1)  # positions 8 p + g lie in bits b with b % 8 = g
        self.softmax = BlockSoftmax(
            ops, _MAX_WEIGHT, self.row_max, down=power(odd), up=power(ops.sub(0, odd))
        )
        self._sums = S8Sums(ops, spec)

    def scores(
        self,
        queries: Sequence[FoldedQuery],
        key: Coding,
        quarters: int,
        load_row: Callable[[Plane, int], Sequence[Value]],
        load_scales: Callable[[int, int], Sequence[Value]],
        ids: Sequence[Ids],
        as_sums: bool = False,
    ) -> list[list[Value]]:
        """`FoldedQuery.scores` for each set, of query t at positions 8 p + g.

        Args:
            queries: of each set, with the same operands: what `S8Queries.load` returns, or
                those that are shortened.
            key: how keys are coded. quarters: of the block, from its first one on.
            load_row: (plane, row) to words of a row of keys, loaded when they are needed.
            load_scales: (i, q) to scales of positions 32 i + 8 q + g for i to i + 3.
            ids: of positions 8 p + g; none: all have one centroid.
            as_sums: whether to return the sums that scores are made of, instead.
        """
        if self._loops_over_planes(key):
            return self._scores_by_plane(queries, key, quarters, load_row, load_scales, ids)
        load_row = functools.cache(load_row)
        planes, operands = self._spec.planes(key), queries[0].operands
        scores: list[list[Value]] = [[None] * (8 * quarters) for _ in queries]
        for first in range(0, quarters, 2):
            for q in range(4):
                tiles = self._tiles(first, q, quarters)
                # Floats: a whole sum over 256 channels may need more than 32 bits.
                of_planes = []
                for plane in planes:
                    words = [load_row(plane, row)[at : at + 2] for row, at in tiles]
                    rights = operands[plane.half][q % 2]
                    of_planes.append(self._sums.of_keys(words, rights, len(queries)))
                sums = [
                    join_planes(self._ops, planes, of_set)
                    for of_set in zip(*of_planes, strict=True)
                ]
                scales = load_scales(2 * first, q)[: len(sums[0])]
                of_positions = scales, ids[8 * first + q :: 4][: len(sums[0])]
                for query, of_set, into in zip(queries, sums, scores, strict=True):
                    found = of_set
                    if not as_sums:
                        found = query.scores(self._ops, key, of_set, *of_positions)
                    for i, score in enumerate(found, 2 * first):
                        into[4 * i + q] = score
        return scores

    def _tiles(self, first: int, q: int, quarters: int) -> list[tuple[int, int]]:
        """Rows of keys, and the first of their two words, of quarters `first` and the next one."""
        pair = range(first, min(first + 2, quarters))
        if self._spec.plane_dim == 128:
            return [(2 * k + q // 2, 2 * (q % 2)) for k in pair]
        return [(k, 2 * (q // 2)) for k in pair]

    def _loops_over_planes(self, coding: Coding) -> bool:
        """Whether planes are a loop of the kernel's, so that its instructions stay in their cache.

        Those of one plane fill it: two classes of tokens of 128 channels, one of them with two
        planes unrolled, took 23 % longer. So are the halves of a learned dictionary's bits.
        """
        if not coding.signs:
            return False
        if coding.apart:
            return True
        return self._spec.halves > 1 if self._spec.part else coding.bits > 1 == self._spec.halves

    def _scores_by_plane(
        self,
        queries: Sequence[FoldedQuery],
        key: Coding,
        quarters: int,
        load_row: Callable[[Plane, int], Sequence[Value]],
        load_scales: Callable[[int, int], Sequence[Value]],
        ids: Sequence[Ids],
    ) -> list[list[Value]]:
        """`scores`, plane after plane.

        Each half has right operands of its own, which take turns in the same registers; planes that
        are channels of their own are asked for theirs.
        """
        ops, size = self._ops, 8 * quarters
        halves, count = queries[0].operands, self._spec.halves
        groups = [(first, q) for first in range(0, quarters, 2) for q in range(4)]
        sums = size * len(queries)

        def places(first: int, q: int) -> range:
            return range(8 * first + q, min(8 * first + 16, size), 4)

        def add(number, carried):
            totals, weight, turning = carried[:sums], carried[sums], carried[sums + 1 :]
            operands = [_in_eights(halves(number))] * 2 if key.apart else halves[0]
            if count > 1:
                operands = [_in_eights(turning[: len(turning) // count])] * 2
            load = functools.cache(functools.partial(load_row, Plane(number, number, 0)))
            if key.apart:  # all at once: eight warps, which wait for none other, have the registers
                for row in range(self._spec.plane_dim // 16 * quarters // 4):
                    load(row)
            for first, q in groups:
                words = [load(row)[at : at + 2] for row, at in self._tiles(first, q, quarters)]
                found = self._sums.of_keys(words, operands[q % 2], len(queries))
                for of_set, start in zip(found, range(0, len(totals), size), strict=True):
                    for p, x in zip(places(first, q), of_set, strict=True):
                        totals[start + p] = ops.fma(x, weight, totals[start + p])
            following = weight if count > 1 or key.apart else ops.fmul(weight, 2.0)
            return [*totals, following, *_turned(turning, count)]

        turning = [w for of_half in halves for x in of_half[0] for w in x] if count > 1 else []
        carried = [*([0.0] * sums), 1.0, *turning]
        planes = key.count if count == 1 else key.bits * count
        totals = ops.loop(planes, carried, add)[:sums]
        scores: list[list[Value]] = [[None] * size for _ in queries]
        for first, q in groups:
            at = places(first, q)
            of_positions = load_scales(2 * first, q)[: len(at)], [ids[p] for p in at if ids]
            for number, (query, into) in enumerate(zip(queries, scores, strict=True)):
                sums = [totals[size * number + p] for p in at]
                found = query.scores(ops, key, sums, *of_positions)
                for p, score in zip(at, found, strict=True):
                    into[p] = score
        return scores

    def ids(self, words: Sequence[Value], coding: Coding) -> Sequence[Ids]:
        """Centroids of positions 8 p + g, from `PackedBlocks.load_ids`; none where all have one."""
        if not words:
            return []
        if not coding.codebook:
            return [CentreIds(words, p) for p in range(BLOCK // 8)]
        ops, lane = self._ops, self._work.lane
        lanes = [ops.add(ops.bit_and(lane, 0xFFFFFFFC), q) for q in range(4)]
        of_bytes = [[BookWord(word, other) for other in lanes] for word in words]
        # Position 32 i + 8 q + g: byte i of lane 4 g + q.
        places = [divmod(p, 4) for p in range(BLOCK // 8)]
        return [BookIds(of_bytes[i // 4][q], i % 4) for i, q in places]

    def weigh(
        self,
        totals: Sequence[Value],
        scores: Sequence[Value],
        unit: Value | None,
        value: Coding,
        scales: Sequence[Value],
        ids: Sequence[Ids],
        masses: BookMasses | None,
    ) -> tuple[list[Value], BlockWeights]:
        """`BlockSoftmax.weigh` of a set, for positions of whole halves of a block.

        The weights' bytes are in `Scratch.store_weights`'s order: for each i upper and lower ones.
        """
        ops = self._ops
        totals, weights = self.softmax.weigh(totals, scores, unit, value, scales, ids, masses)
        numbers = [*weights.operands] + [TO_INT_BITS] * (-len(scores) % 16)
        words = []
        for i in range(0, len(numbers), 4):
            first, second = (
                ops.bytes(numbers[j], numbers[j + 1], 0x5140) for j in (i, i + 2)
            )  # lower bytes of both, then upper bytes
            words.append([ops.bytes(first, second, pair) for pair in (0x7632, 0x5410)])
        return totals, dataclasses.replace(weights, operands=words)

    def add_values(
        self,
        channels: Sequence[Sequence[Value]],
        weights: Sequence[BlockWeights],
        value: Coding,
        load_row: Callable[[Plane, int], Sequence[Value]],
    ) -> list[list[Value]]:
        """For each set the new sums of channels 16 m + 8 r + g of query t.

        Args:
            channels: for each set sums so far.
            weights: for each set; operands are eight words for each half of a block: of bits 0 to 7
                of a byte.
            value: how values are coded.
            load_row: (plane, row) to words of a row of values in those halves, loaded when they are
                needed.
        """
        ops, spec = self._ops, self._spec
        units = [ops.fmul(x.unit, 1.0 / _VALUE_UNIT) for x in weights]
        weights = [
            dataclasses.replace(x, unit=unit) for x, unit in zip(weights, units, strict=True)
        ]
        operands = [x.operands for x in weights]
        if self._loops_over_planes(value):
            return self._add_values_by_plane(channels, weights, value, load_row)
        new: list[list[Value]] = [[] for _ in channels]
        for m in range(0, spec.head_dim // 16, 2):
            half, row = divmod(m, spec.plane_dim // 16)
            planes = spec.planes(value)[half :: spec.halves]
            of_planes = [
                self._sums.of_values([load_row(plane, row + i) for i in (0, 1)], operands)
                for plane in planes
            ]
            for i, *of_tile in zip((m, m + 1), *of_planes, strict=True):
                for into, old, of_set, *sums in zip(new, channels, weights, *of_tile, strict=True):
                    products = join_planes(ops, planes, sums)
                    into += add_products(ops, old[2 * i : 2 * i + 2], of_set, products)
        return new

    def _add_values_by_plane(
        self,
        channels: Sequence[Sequence[Value]],
        weights: Sequence[BlockWeights],
        value: Coding,
        load_row: Callable[[Plane, int], Sequence[Value]],
    ) -> list[list[Value]]:
        """`add_values`, plane after plane; units are those of the sums of a plane.

        Each half has sums of its own, which take turns in the same registers.
        """
        ops, size, halves = self._ops, self._spec.head_dim // 8, self._spec.halves
        operands = [x.operands for x in weights]
        old = [
            ops.fmul(x, of_set.old)
            for of_set, mine in zip(weights, channels, strict=True)
            for x in mine
        ]

        def add(number, carried):
            sums, units = list(carried[: len(old)]), carried[len(old) :]
            plane = Plane(number, number, 0)
            for m in range(0, self._spec.plane_dim // 16, 2):
                rows = [load_row(plane, m + i) for i in (0, 1)]
                for i, of_tile in enumerate(self._sums.of_values(rows, operands), m):
                    for of_set, (found, unit) in enumerate(zip(of_tile, units, strict=True)):
                        for at, x in enumerate(found, size * of_set + 2 * i):
                            sums[at] = ops.fma(x, unit, sums[at])
            if halves > 1:
                of_sets = [sums[i : i + size] for i in range(0, len(sums), size)]
                return [x for of_set in of_sets for x in _turned(of_set, halves)] + [*units]
            return [*sums, *(ops.fmul(unit, 2.0) for unit in units)]

        planes = value.count if halves == 1 else value.bits * halves
        found = ops.loop(planes, [*old, *(x.unit for x in weights)], add)
        return [list(found[i : i + size]) for i in range(0, len(old), size)]

    def add_values_apart(
        self,
        weights: BlockWeights,
        value: Coding,
        load_row: Callable[[Plane, int], Sequence[Value]],
        load_sums: Callable[[Value], Sequence[Value]],
        store_sums: Callable[[Value, Sequence[Value]], None],
    ) -> None:
        """Adds a block to sums that are kept elsewhere, of planes that are channels of their own.

        Args:
            weights, value, load_row: see `add_values`, for one set.
            load_sums, store_sums: of a plane's channels 16 m + 8 r + g, by its number.
        """
        ops, unit = self._ops, self._ops.fmul(weights.unit, 1.0 / _VALUE_UNIT)

        def add(number, _):
            plane, sums = Plane(number, number, 0), []
            rows = [load_row(plane, row) for row in range(self._spec.plane_dim // 16)]
            for m in range(0, len(rows), 2):
                for (found,) in self._sums.of_values(rows[m : m + 2], [weights.operands]):
                    sums += found
            old = [ops.fmul(x, weights.old) for x in load_sums(number)]
            store_sums(number, [ops.fma(x, unit, y) for x, y in zip(sums, old, strict=True)])
            return []

        ops.loop(value.count, [], add)

    def row_max(self, x: Value) -> Value:
        """The maximum over the lanes that share t."""
        ops = self._ops
        return functools.reduce(
            lambda x, bit: ops.fmax(x, exchange_float(ops, x, bit)), SAME_QUERY, x
        )


def _in_eights(words: Sequence[Value]) -> list[list[Value]]:
    return [list(words[i : i + 8]) for i in range(0, len(words), 8)]


def _turned(values: Sequence[Value], parts: int) -> list[Value]:
    """The values with the first of their equal parts behind the others."""
    first = len(values) // parts
    return [*values[first:], *values[:first]]
