"""The body of one thread block: a number of each token of a head, put in the order of its slots.

Tokens of dictionary codes lie class by class (`vkq_jax.codes.token_classes`); what a launch
looks up by a token's position has to be found by its slot. A lane takes a word of the class map, 16
tokens: its tokens' slots follow from how many of their classes lie before them.
"""

import dataclasses

from pallas_kernels.isa.operations import Operations, Value

__all__ = ["WARPS", "SlotEntries", "SlotSpec"]

TOKENS = 16  # of a word of the map, two bits each
WARPS = 16
THREADS = 32 * WARPS
_LOW_BITS = 0x55555555
_MOST_BYTES = 80 * 1024  # of shared memory for entries, on any architecture


@dataclasses.dataclass(frozen=True)
class SlotSpec:
    """One launch.

    Attributes:
        outer, layers, batch, kv_heads: as in `KernelSpec`.
        num_positions: V.
        slots: of each class, by its number, of whole blocks; 0: it has no tokens.
    """

    outer: int
    layers: int
    batch: int
    kv_heads: int
    num_positions: int
    slots: tuple[int, ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """Numbers of the classes that have slots."""
        return tuple(number for number, slots in enumerate(self.slots) if slots)

    @property
    def heads(self) -> int:
        """KV heads of the whole launch: thread blocks."""
        return self.outer * self.batch * self.kv_heads

    @property
    def words(self) -> int:
        """Words of the map of one head."""
        return -(-self.num_positions // TOKENS)

    @property
    def collects(self) -> bool:
        """Whether shared memory has room for a head's entries, which then leave it in order."""
        return 4 * sum(self.slots) <= _MOST_BYTES

    @property
    def shared_words(self) -> int:
        """Words of shared memory of a thread block: sums of warps, entries."""
        return 2 * WARPS + (sum(self.slots) if self.collects else 0)


class SlotEntries:
    """`run()` does the work of one warp.

    Operands: class_map [layers of heads, words] uint32, length [sequences], number [sequences, V]
    int32, and layer [1] int32 where there are several. Result: entry [heads, slots of all classes]
    int32, 0 in free slots.
    """

    def __init__(self, ops: Operations, spec: SlotSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        self._thread = ops.thread_index()
        self._lane = ops.bit_and(self._thread, 31)
        self._warp = ops.uniform(ops.shift_right(self._thread, 5))
        self._head = ops.block_index()
        self._sequence = ops.div(self._head, spec.kv_heads)
        stored = self._head
        if spec.layers > 1:
            inner = spec.batch * spec.kv_heads
            layer = ops.uniform(ops.load(ops.pointer("layer")))
            outer = ops.div(self._head, inner)
            stored = ops.mad(layer, inner, ops.mad(outer, (spec.layers - 1) * inner, self._head))
        self._map = ops.address(ops.pointer("class_map"), stored, 4 * spec.words)
        self._numbers = ops.address(ops.pointer("number"), self._sequence, 4 * spec.num_positions)
        self._entries = ops.address(ops.pointer("entry"), self._head, 4 * sum(spec.slots))

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        length = ops.uniform(ops.load(ops.address(ops.pointer("length"), self._sequence, 4)))
        rounds = -(-spec.words // THREADS)
        counts = ops.loop(
            rounds, [0] * len(spec.classes), lambda i, before: self._round(i, before, length)
        )
        ops.barrier()
        for number, count in zip(spec.classes, counts, strict=True):
            first, slots = sum(spec.slots[:number]), spec.slots[number]

            def finish(i, _, first=first, slots=slots, count=count):
                slot = ops.mad(i, THREADS, self._thread)
                entry = 0
                if spec.collects:
                    at = ops.mad(ops.min(slot, slots - 1), 4, ops.shared())
                    entry = ops.as_bits(ops.load_shared(at, 4 * (2 * WARPS + first)))
                    entry = ops.where_less(slot, count, entry, 0)
                there = ops.where_less(slot, slots, 1, 0)
                if not spec.collects:  # the others are where they belong
                    there = ops.where_less(slot, count, 0, there)
                ops.store(there, ops.address(self._entries, slot, 4), 4 * first, entry)
                return []

            ops.loop(-(-slots // THREADS), [], finish)

    def _round(self, i: Value, before: list[Value], length: Value) -> list[Value]:
        """Writes the entries of a word of each thread; the tokens of each class so far."""
        ops, spec = self._ops, self._spec
        number = ops.mad(i, THREADS, self._thread)
        word = ops.load(ops.address(self._map, ops.min(number, spec.words - 1), 4))
        first = ops.shift_left(number, 4)
        count = ops.max(ops.min(ops.sub(length, first), TOKENS), 0)
        valid = ops.bit_and(ops.low_bits(ops.shift_left(count, 1)), _LOW_BITS)
        masks = [self._members(word, valid, number) for number in spec.classes]
        found = [ops.count_bits(mask) for mask in masks]
        earlier, totals = self._sums(found)
        starts = [
            ops.add(ops.add(x, y), sum(spec.slots[:number]))
            for number, x, y in zip(spec.classes, before, earlier, strict=True)
        ]
        for token in range(TOKENS):
            own = ops.bit_and(ops.shift_right(word, 2 * token), 3)
            start, mask = starts[0], masks[0]
            for k, of_class in enumerate(spec.classes[1:], 1):
                start = ops.where_less(own, of_class, start, starts[k])
                mask = ops.where_less(own, of_class, mask, masks[k])
            slot = ops.add(start, ops.count_bits(ops.bit_and(mask, (1 << 2 * token) - 1)))
            position = ops.min(ops.add(first, token), spec.num_positions - 1)
            entry = ops.load(ops.address(self._numbers, position, 4))
            there = ops.where_less(token, count, 1, 0)
            if spec.collects:
                at = ops.mad(slot, 4, ops.shared())
                ops.store_shared(there, at, 4 * 2 * WARPS, ops.from_bits(entry))
            else:
                ops.store(there, ops.address(self._entries, slot, 4), 0, entry)
        return [ops.add(x, y) for x, y in zip(before, totals, strict=True)]

    def _members(self, word: Value, valid: Value, number: int) -> Value:
        """Which tokens of the word are of a class: the lower bit of each one's two."""
        ops = self._ops
        unlike = ops.bit_xor(word, number * _LOW_BITS)
        unlike = ops.bit_select(unlike, unlike, ops.shift_right(unlike, 1))  # either bit
        return ops.bit_xor(ops.bit_and(unlike, valid), valid)

    def _sums(self, found: list[Value]) -> tuple[list[Value], list[Value]]:
        """Sums of each number over all threads before this one, and over all of the block.

        A sum is at most 16 for each of 512 threads: two fit a word.
        """
        ops = self._ops
        pairs = [
            ops.mad(found[k + 1], 1 << 16, found[k]) if k + 1 < len(found) else found[k]
            for k in range(0, len(found), 2)
        ]
        own = ops.mad(self._warp, 4 * len(pairs), ops.shared())
        at = ops.mad(ops.min(self._lane, WARPS - 1), 4 * len(pairs), ops.shared())
        upto = []
        for k, pair in enumerate(pairs):
            total = pair
            for step in (1, 2, 4, 8, 16):
                other = ops.take(total, ops.bit_and(ops.sub(self._lane, step), 31))
                total = ops.add(total, ops.where_less(self._lane, step, 0, other))
            upto.append(total)
            ops.store_shared(ops.equal(self._lane, 31), own, 4 * k, ops.from_bits(total))
        ops.barrier()
        earlier, totals = [], []
        for k, (pair, total) in enumerate(zip(pairs, upto, strict=True)):
            of_warp = ops.as_bits(ops.load_shared(at, 4 * k))
            before = ops.warp_add(ops.where_less(self._lane, self._warp, of_warp, 0))
            earlier.append(ops.add(before, ops.sub(total, pair)))
            totals.append(ops.warp_add(ops.where_less(self._lane, WARPS, of_warp, 0)))
        ops.barrier()  # the next round writes them again
        return self._halves(earlier, len(found)), self._halves(totals, len(found))

    def _halves(self, pairs: list[Value], count: int) -> list[Value]:
        ops = self._ops
        halves = [(ops.bit_and(x, 0xFFFF), ops.shift_right(x, 16)) for x in pairs]
        return [half for pair in halves for half in pair][:count]
