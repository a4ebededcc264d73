"""A team's queries as right operands of byte products, see `s8_products`.

Each is prepared by one of the team's warps and left in shared memory, from where all take it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from pallas_kernels.attention.body.codebook import load_book
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_query import PackedQuery
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.attention.kernel_spec import SET, KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOG2_E, by_lane_pair

__all__ = ["S8Queries", "code_places"]

_DIGITS = 0x808080  # added and taken back by xor, it turns a number's three bytes into signed ones
_GREATEST = 2.0**23 * (1 - 2.0**-7)  # of a number: the upper digit stays within a byte
_LOST_VARIANCE = (1e-4 * LOG2_E) ** 2  # of scores, the most that shortened queries may cause


def code_places(spec: KernelSpec) -> int:
    """The lowest bits of a byte, in one of which a word has a code of keys.

    Few of them cost shifts; many cost precision.
    """
    return 2 if spec.shortens_queries else 4


class S8Queries:
    """Query t of each set in lanes 4 g + t."""

    def __init__(self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work):
        """Computes what depends on the lane only."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        self._odd = ops.bit_and(work.g, 1)

    def begin(self, first: int) -> list[PackedQuery]:
        """The queries that the warp prepares, their loads under way; see `prepare`."""
        numbers = self._numbers(self._work.member_after(first))
        return [
            PackedQuery(self._ops, self._spec, self._packed, self._work, number)
            for number in numbers
        ]

    def _numbers(self, member: Value) -> list[Value]:
        tuning = self._spec.tuning
        return [self._ops.add(member, i) for i in range(0, tuning.queries, tuning.team)]

    def prepare(
        self,
        scratch: Scratch,
        first: int = 0,
        *,
        begun: Sequence[PackedQuery] = (),
        book: bool = True,
    ) -> None:
        """Each warp of the team prepares some of its queries: one after `team` others.

        Args:
            scratch: where to. first: the warp that begins, so that several parts take several.
            begun: the queries, if they are loaded already.
            book: whether to fill the tables of scores by centroid, if there are any.
        """
        ops, spec, packed, work = self._ops, self._spec, self._packed, self._work
        tuning = spec.tuning
        member = work.member_after(first)
        # Channels 32 k + 8 t + g of a query lie in bits b with b % 8 = g: worth 2^(b % places).
        exponent = ops.bit_and(work.g, code_places(spec) - 1)
        factor = ops.from_bits(ops.shift_left(ops.sub(127, exponent), 23))

        def prepare(_):
            numbers = self._numbers(member)
            queries = begun or [PackedQuery(ops, spec, packed, work, number) for number in numbers]
            for number, query in zip(numbers, queries, strict=True):
                query.prepare()
                folded = query.fold(0, _GREATEST, factor)
                digits = self._signed_digits(folded.operands)
                lost = 0.0
                if spec.shortens_queries:
                    lost = self._lost_variance(digits, folded.unit, packed.key)

                def store(_, number=number, folded=folded, digits=digits, lost=lost):
                    scratch.store_query(number, folded, digits, lost)
                    if packed.key.codebook and book:
                        load_book(ops, spec, work, scratch, number)
                    return []

                ops.cond(ops.where_less(number, tuning.queries, 1, 0), [], store)
            return []

        ops.cond(ops.where_less(member, tuning.queries, 1, 0), [], prepare)

    def shortening(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        carried: Sequence[Value],
        body: Callable[[list[FoldedQuery], list[Value]], list[Value]],
    ) -> list[Value]:
        """`body(queries, carried)`, of shortened ones where they allow for it: it is there twice.

        The choice is the team's: what differed between its warps would fill the instruction cache.
        """
        ops = self._ops
        if not self._spec.shortens_queries:
            return body(queries, list(carried))
        firsts = range(0, self._spec.tuning.queries, SET)
        lost = [ops.as_bits(scratch.load_lost_variance(first)) for first in firsts]
        lost = ops.warp_max(functools.reduce(ops.max, lost))
        shortened = self._shortened(queries)
        return ops.cond(
            ops.where_less(lost, ops.as_bits(_LOST_VARIANCE), 1, 0),
            carried,
            functools.partial(body, shortened),
            functools.partial(body, queries),
        )

    def load(self, scratch: Scratch) -> list[FoldedQuery]:
        """Query t of each set, with the operands of all."""
        firsts = range(0, self._spec.tuning.queries, SET)
        queries, channels = zip(*(scratch.load_queries(first) for first in firsts), strict=True)
        operands = [self._encode(of_half) for of_half in zip(*channels, strict=True)]
        books = [None] * len(queries)
        if self._packed.key.codebook:
            books = [
                scratch.book_table(self._work.team_query(self._work.t, first)) for first in firsts
            ]
        return [
            dataclasses.replace(query, operands=operands, book=book)
            for query, book in zip(queries, books, strict=True)
        ]

    def _encode(self, sets: Sequence[Sequence[Value]]) -> list[list[list[Value]]]:
        """Right operands for even and for odd quarters of a block: of each set, and lower bytes.

        Args:
            sets: for each set, numbers of query g // 2 as `_signed_digits`, channels 32 t to
                32 t + 31 of a half, or of small heads 32 (t % 2)....
        """
        ops = self._ops
        selector = ops.where_less(self._odd, 1, 0x62, 0x51)
        operands = [self._gather(channels, selector) for channels in sets]
        lower = [self._gather(channels, 0x40) for channels in sets] + [[0] * 8]
        operands.append(
            [ops.where_less(self._odd, 1, *pair) for pair in zip(*lower[:2], strict=True)]
        )
        if self._spec.plane_dim == 128:
            return [operands] * 2
        pairs = [by_lane_pair(ops, self._work.t, words) for words in operands]
        return [list(of_quarter) for of_quarter in zip(*pairs, strict=True)]

    def encode_channels(self, at: Value) -> list[Value]:
        """Right operands of a plane of 128 channels, and of their lower bytes, as one list.

        Args:
            at: `Scratch.query_channels` of query g // 2, of the only set.
        """
        channels = [word for i in range(8) for word in self._ops.load_shared4(at, 16 * i)]
        return [word for operand in self._encode([channels])[0] for word in operand]

    def _signed_digits(self, numbers: Sequence[Value]) -> list[Value]:
        """Numbers whose lower three bytes, taken as signed ones, sum up to them."""
        ops = self._ops
        return [ops.bit_xor(ops.add(x, _DIGITS), _DIGITS) for x in numbers]

    def _lost_variance(self, digits: Sequence[Value], unit: Value, key: Coding) -> Value:
        """The variance of scores that a shortened query loses: a float, in all lanes.

        For codes that are independently zero or greatest, each half the time.

        Args:
            digits: `_signed_digits` of its numbers. unit: of these. key: how keys are coded.
        """
        ops = self._ops
        lost = [ops.shift_right_signed(ops.shift_left(x, 24), 24) for x in digits]
        squares = functools.reduce(lambda sum, x: ops.mad(x, x, sum), lost, 0)
        squares = ops.where_less(self._odd, 1, squares, ops.shift_left(squares, 2))
        deviation = ops.fmul(unit, (2**key.bits - 1) / 2)
        return ops.fmul(ops.to_float(ops.warp_add(squares)), ops.fmul(deviation, deviation))

    def _shortened(self, queries: Sequence[FoldedQuery]) -> list[FoldedQuery]:
        """Queries without their lowest digits, which saves a third of the products."""
        operands = [
            [of_quarter[: len(queries)] for of_quarter in of_half]
            for of_half in queries[0].operands
        ]
        units = [self._ops.fmul(query.unit, 256.0) for query in queries]
        return [
            dataclasses.replace(query, operands=operands, unit=unit)
            for query, unit in zip(queries, units, strict=True)
        ]

    def _gather(self, words: Sequence[Value], selector: Value) -> list[Value]:
        """Eight words: byte j of word b is the byte of word 8 j + b that the selector names."""
        ops, gathered = self._ops, []
        for b in range(8):
            low, high = (ops.bytes(words[j + b], words[j + b + 8], selector) for j in (0, 16))
            gathered.append(ops.bytes(low, high, 0x5410))
        return gathered
