"""The body of one thread block: the tokens of a head put into classes by their energy.

A thread takes a few tokens in a row. The energy at which a class begins is found bit by bit, from
the highest, by counting the tokens above; then sums over the threads before say which of equally
large energies come first, and which slot of its class a token takes.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import warp_sum
from pallas_kernels.quantize.half_block import HALF

__all__ = ["MOST_POSITIONS", "WARPS", "OrderKernel", "OrderSpec", "padded_capacities"]

WARPS = 32
MOST_POSITIONS = 16 * 32 * WARPS  # also: counts have 16 bits
_PARTS = 1000  # of tokens, see vkq_jax.codes.token_classes
_BITS = 31  # of an energy, which has no sign
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000  # of a float32's word


def padded_capacities(capacities: Sequence[int]) -> tuple[int, ...]:
    """Slots of each class, with those that fill up half a block of the layout."""
    return tuple(-(-capacity // HALF) * HALF for capacity in capacities)


@dataclasses.dataclass(frozen=True)
class OrderSpec:
    """One launch.

    Attributes:
        heads: of all sequences. positions: V. capacities: slots of each class.
        bounds: where each class ends, in thousandths of the tokens.
        floor: added to the attention that energies are multiplied by, in units of its mean; None:
            energies alone count.
    """

    heads: int
    positions: int
    capacities: tuple[int, ...]
    bounds: tuple[int, ...]
    floor: float | None

    @property
    def each(self) -> int:
        """Tokens of a thread."""
        return -(-self.positions // (32 * WARPS))

    @property
    def padded(self) -> tuple[int, ...]:
        """See `padded_capacities`."""
        return padded_capacities(self.capacities)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first slot of each class among the padded ones."""
        return tuple(itertools.accumulate((0, *self.padded[:-1])))

    @property
    def shared_words(self) -> int:
        """Words of every warp, of two passes."""
        return 2 * 4 * WARPS


class OrderKernel:
    """`run()` does the work of one warp.

    Operands: energy [2 * heads, V] float32, of keys, then of values, at least 0; length [heads]
    int32; attention [heads, V] float32, at least 0 where it is finite, if there is a floor.
    Results: number [heads, V] int32, the class of each token, as many as there are where there is
    none; slot [heads, sum of padded] int32, the position in each slot, -1 where there is none;
    count [heads, classes] int32.
    """

    def __init__(self, ops: Operations, spec: OrderSpec):
        """Finds out which tokens are this thread's."""
        self._ops, self._spec = ops, spec
        self._thread = ops.thread_index()
        self._lane = ops.bit_and(self._thread, 31)
        self._warp = ops.uniform(ops.shift_right(self._thread, 5))
        self._head = ops.block_index()
        self._shared = ops.shared()
        self._first = ops.mad(self._thread, spec.each, 0)
        self._scans = itertools.count(_BITS)  # behind as many sums, which take buffers by turns
        self._length = ops.load(ops.address(ops.pointer("length"), self._head, 4))

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        keys = self._keys()
        stops = self._stops()
        numbers = self._numbers(keys, stops, self._thresholds(keys, stops))
        classes = len(spec.capacities)
        counts: list[Value] = [0] * classes
        within: list[Value] = []
        for number in numbers:
            own: Value = 0
            for c in range(classes):
                own = ops.where_less(ops.bit_xor(number, c), 1, counts[c], own)
                counts[c] = ops.add(counts[c], ops.equal(number, c))
            within.append(own)
        before, totals = self._scan(counts)
        for j, (number, own) in enumerate(zip(numbers, within, strict=True)):
            position = ops.add(self._first, j)
            place = ops.mad(self._head, spec.positions, position)
            exists = ops.where_less(position, spec.positions, 1, 0)
            ops.store(exists, ops.address(ops.pointer("number"), place, 4), 0, number)
            first: Value = 0
            for c in range(classes):
                start = ops.add(before[c], spec.starts[c])
                first = ops.where_less(ops.bit_xor(number, c), 1, start, first)
            valid = ops.where_less(number, classes, 1, 0)
            self._store_slot(valid, ops.add(first, own), position)
        for c, total in enumerate(totals):
            place = ops.mad(self._head, classes, c)
            leads = ops.equal(self._thread, 0)
            ops.store(leads, ops.address(ops.pointer("count"), place, 4), 0, total)
            for first in range(0, spec.padded[c], 32 * WARPS):
                slot = ops.add(self._thread, first)
                free = ops.where_less(slot, total, 0, 1)
                inside = ops.where_less(slot, spec.padded[c], free, 0)
                self._store_slot(inside, ops.add(slot, spec.starts[c]), -1)

    def _store_slot(self, condition: Value, slot: Value, position: Value) -> None:
        ops = self._ops
        place = ops.mad(self._head, sum(self._spec.padded), slot)
        ops.store(condition, ops.address(ops.pointer("slot"), place, 4), 0, position)

    def _keys(self) -> list[Value]:
        """Energies in units of their means as words, which have their order; -1: no token."""
        ops, spec = self._ops, self._spec
        rows = [self._row("energy", side * spec.heads) for side in range(2)]
        if spec.floor is not None:
            rows.append([self._finite(x) for x in self._row("attention", 0)])
        units = self._units(rows)
        keys = []
        for j, (of_key, of_value, *paid) in enumerate(zip(*rows, strict=True)):
            energy = ops.fadd(ops.fmul(of_key, units[0]), ops.fmul(of_value, units[1]))
            for attention in paid:
                weight = ops.fadd(ops.fmul(attention, units[2]), spec.floor)
                energy = ops.fmul(energy, weight)
            position = ops.add(self._first, j)
            valid = ops.where_less(position, self._length, 1, 0)
            keys.append(ops.where_less(0, valid, ops.as_bits(energy), -1))
        return keys

    def _row(self, name: str, start: int) -> list[Value]:
        """An operand's numbers of this thread's tokens; 0 where there is none."""
        ops, spec = self._ops, self._spec
        row = ops.mad(ops.add(self._head, start), spec.positions, 0)
        found = []
        for j in range(spec.each):
            position = ops.add(self._first, j)
            place = ops.add(row, ops.min(position, spec.positions - 1))
            x = ops.load_float(ops.address(ops.pointer(name), place, 4))
            found.append(ops.where_less_float(position, self._length, x, 0.0))
        return found

    def _finite(self, x: Value) -> Value:
        """The number; 0 for NaN and infinity."""
        ops = self._ops
        return ops.where_less_float(ops.bit_and(ops.as_bits(x), _MAGNITUDE), _INFINITY, x, 0.0)

    def _units(self, rows: Sequence[Sequence[Value]]) -> list[Value]:
        """One over the mean of the head's tokens, of each kind of numbers; 1 if that is 0."""
        ops = self._ops
        at = ops.mad(self._warp, 4, self._shared)
        for i, row in enumerate(rows):
            total: Value = 0.0
            for x in row:
                total = ops.fadd(total, x)
            total = warp_sum(ops, total)
            ops.store_shared(ops.equal(self._lane, 0), at, 4 * WARPS * i, total)
        ops.barrier()
        count = ops.to_float(ops.max(self._length, 1))
        at = ops.mad(self._lane, 4, self._shared)
        units = []
        for i in range(len(rows)):
            total = warp_sum(ops, ops.load_shared(at, 4 * WARPS * i))
            share = ops.fmul(count, ops.reciprocal(ops.fmax(total, 2.0**-126)))
            units.append(ops.where_less_float(0, ops.as_bits(total), share, 1.0))
        ops.barrier()
        return units

    def _stops(self) -> list[Value]:
        """How many tokens come before the end of each class but the last."""
        ops = self._ops
        thousands, rest = ops.div(self._length, _PARTS), ops.rem(self._length, _PARTS)
        stops = []
        for bound in self._spec.bounds[:-1]:
            part = ops.div(ops.mad(rest, bound, _PARTS // 2), _PARTS)
            stops.append(ops.mad(thousands, bound, part))
        return stops

    def _thresholds(self, keys: Sequence[Value], stops: Sequence[Value]) -> list[Value]:
        """The key of the last token before each stop; above all keys where there is none."""
        ops = self._ops

        def narrow(i: Value, carried: list[Value]) -> list[Value]:
            bit, *found = carried
            tried = [ops.add(t, bit) for t in found]
            counts = []
            for t in tried:
                count: Value = 0
                for key in keys:
                    count = ops.add(count, ops.where_less(key, t, 0, 1))
                counts.append(count)
            totals = self._total(counts, ops.bit_and(i, 1))
            found = [
                ops.where_less(total, stop, old, new)
                for total, stop, old, new in zip(totals, stops, found, tried, strict=True)
            ]
            return [ops.shift_right(bit, 1), *found]

        return ops.loop(_BITS, [1 << (_BITS - 1), *[0] * len(stops)], narrow)[1:]

    def _numbers(
        self, keys: Sequence[Value], stops: Sequence[Value], thresholds: Sequence[Value]
    ) -> list[Value]:
        """The class of each token."""
        ops, spec = self._ops, self._spec
        equals = [[ops.equal(key, t) for key in keys] for t in thresholds]
        above = [[ops.where_less(t, key, 1, 0) for key in keys] for t in thresholds]

        def totals(marks: list[list[Value]]) -> list[Value]:
            found = []
            for row in marks:
                count: Value = 0
                for mark in row:
                    count = ops.add(count, mark)
                found.append(count)
            return found

        before, _ = self._scan(totals(equals))
        _, greater = self._scan(totals(above))
        numbers: list[Value] = [0] * len(keys)
        for b, stop in enumerate(stops):
            room = ops.sub(ops.sub(stop, greater[b]), before[b])  # for equal ones, from here on
            for j in range(len(keys)):
                taken = ops.where_less(0, room, equals[b][j], 0)
                room = ops.sub(room, equals[b][j])
                inside = ops.max(taken, above[b][j])
                numbers[j] = ops.add(numbers[j], ops.sub(1, inside))
        return [
            ops.where_less(ops.add(self._first, j), self._length, number, len(spec.capacities))
            for j, number in enumerate(numbers)
        ]

    # Over all threads, two counts of 16 bits in a word --------------------------------------------

    def _total(self, counts: Sequence[Value], parity: Value) -> list[Value]:
        """Sums of counts; the next call has to come with the other parity."""
        ops = self._ops
        base = ops.mad(parity, 4 * 4 * WARPS, self._shared)
        words = [ops.warp_add(word) for word in self._packed(counts)]
        at = ops.mad(self._warp, 4, base)
        for i, word in enumerate(words):
            leads = ops.equal(self._lane, 0)
            ops.store_shared(leads, at, 4 * WARPS * i, ops.from_bits(word))
        ops.barrier()
        at = ops.mad(self._lane, 4, base)
        read = [ops.as_bits(ops.load_shared(at, 4 * WARPS * i)) for i in range(len(words))]
        return self._unpacked([ops.warp_add(word) for word in read], len(counts))

    def _scan(self, counts: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """Sums of the counts of all threads before this one, and of all."""
        ops, parity = self._ops, next(self._scans) % 2
        packed = self._packed(counts)
        base = ops.add(self._shared, 4 * 4 * WARPS * parity)
        upto = [self._up_to_here(word) for word in packed]
        at = ops.mad(self._warp, 4, base)
        for i, word in enumerate(upto):
            last = ops.equal(self._lane, 31)
            ops.store_shared(last, at, 4 * WARPS * i, ops.from_bits(word))
        ops.barrier()
        at = ops.mad(self._lane, 4, base)
        before, totals = [], []
        for i, (word, own) in enumerate(zip(upto, packed, strict=True)):
            warps = ops.as_bits(ops.load_shared(at, 4 * WARPS * i))
            upto_warp = self._up_to_here(warps)
            start = ops.sub(ops.take(upto_warp, self._warp), ops.take(warps, self._warp))
            before.append(ops.add(start, ops.sub(word, own)))
            totals.append(ops.take(upto_warp, 31))
        return self._unpacked(before, len(counts)), self._unpacked(totals, len(counts))

    def _up_to_here(self, word: Value) -> Value:
        """The sum of a word over the lanes up to this one."""
        ops = self._ops
        for distance in (1, 2, 4, 8, 16):
            other = ops.take(word, ops.bit_and(ops.sub(self._lane, distance), 31))
            word = ops.add(word, ops.where_less(self._lane, distance, 0, other))
        return word

    def _packed(self, counts: Sequence[Value]) -> list[Value]:
        ops, counts = self._ops, list(counts)
        pairs = itertools.zip_longest(counts[::2], counts[1::2], fillvalue=0)
        return [ops.mad(high, 1 << 16, low) for low, high in pairs]

    def _unpacked(self, words: Sequence[Value], count: int) -> list[Value]:
        ops = self._ops
        halves = ((ops.bit_and(w, 0xFFFF), ops.shift_right(w, 16)) for w in words)
        return list(itertools.chain(*halves))[:count]
