"""A warp's share of a packed bank: its blocks, their words and scales, what is visible of them."""

import functools
from collections.abc import Sequence

from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.attention.kernel_spec import SET, KernelSpec
from pallas_kernels.isa.fixed_point import TO_INT, TO_INT_BITS
from pallas_kernels.isa.operations import LINE, Operations, Value
from pallas_kernels.isa.warp_math import LOG2_E, LOWEST
from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import BLOCK, QUARTER, Plane
from vkq_jax.cache.key_bias import FIELD_BITS

__all__ = ["WHOLE", "PackedBlocks"]

WHOLE = BLOCK // QUARTER


class PackedBlocks:
    """Blocks [first, last) of the warp, [first, last_whole) of them not cut short.

    Blocks that a window hides from all queries of the team are nobody's.

    Operands: key, value: words of each head; length [sequences]; for sign codes {key,value}_scale:
    words of each head; with several centroids {key,value}_id: words of each head; with a window
    packed_start [sequences, positions] int32: the first position that the queries see; with a key
    bias bias [rows, slots of whole blocks] float32, natural: its share of each score; where that is
    looked up, bias [axes * positions, columns] and entry [sequences or heads, slots of whole blocks
    of all classes], see `key_bias`. Names of other operands of a class of tokens begin with the
    class, and length is [heads, classes]; starts are those of each head.
    """

    def __init__(self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work):
        """Divides the blocks that show anything between the warps of the team."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        owner, number = work.sequence, work.sequence
        if packed.of_classes:
            owner = work.head
            number = ops.mad(work.stored_head, packed.of_classes, packed.number)
        length = ops.address(ops.pointer("length"), number, 4)
        self.length = ops.uniform(ops.load(length))
        blocks = ops.div(ops.add(self.length, BLOCK - 1), BLOCK)
        self.hidden = 0
        self.starts: list[Value] = []
        if spec.windowed:
            name = f"{packed.name or 'packed_'}start"
            starts = work.of_queries(name, 0, spec.tuning.queries, owner)
            self.hidden = ops.min(ops.div(functools.reduce(ops.min, starts), BLOCK), blocks)
            self.last_start = functools.reduce(ops.max, starts)
            self.starts = [work.mine(starts[i : i + SET]) for i in range(0, len(starts), SET)]
        self.stop = blocks
        self.take(*work.share(blocks, self.hidden))

    def take(self, first: Value, last: Value) -> None:
        """Makes other blocks the warp's."""
        ops, packed = self._ops, self._packed
        self.first, self.last = first, last
        self.last_whole = ops.min(last, packed.whole_blocks)
        self.has_rest = ops.where_less(packed.whole_blocks, last, 1, 0)

    def load_rows(self, name: str, block: Value, quarters: int, plane: Plane) -> list[list[Value]]:
        """This lane's words of a plane of a block, row by row."""
        _, rows, _ = self._rows(name, block, quarters, plane)
        return [self.load_row(name, block, quarters, plane, row) for row in range(rows)]

    def load_row(
        self, name: str, block: Value, quarters: int, plane: Plane, row: int
    ) -> list[Value]:
        """This lane's words of a row of a plane: 4 (2 for values of at most two quarters)."""
        ops = self._ops
        address, _, row_bytes = self._rows(name, block, quarters, plane)
        address = ops.address(address, self._work.lane, row_bytes // 32)
        return (ops.load4 if row_bytes == 512 else ops.load2)(address, row_bytes * row)

    def whole_rows(self, name: str, block: Value, plane: Plane) -> Value:
        """Address of this lane's words of a plane of a whole block, for `load_whole_rows`."""
        address, _, row_bytes = self._rows(name, block, WHOLE, plane)
        return self._ops.address(address, self._work.lane, row_bytes // 32)

    def load_whole_rows(self, address: Value) -> list[Value]:
        """This lane's words of a plane of a whole block: as many of keys and of values."""
        rows = self._spec.plane_dim // 16
        return [word for row in range(rows) for word in self._ops.load4(address, 512 * row)]

    def load_any_row(self, name: str, block: Value, plane: Plane, row: int) -> list[Value]:
        """`load_row` of a block that may be cut short; what it lacks are any words."""
        ops, quarters, whole = self._ops, self._packed.quarters, self._packed.whole_blocks
        _, rows, row_bytes = self._rows(name, block, quarters or WHOLE, plane)
        if row < rows and row_bytes == 512:
            return self.load_row(name, block, WHOLE, plane, row)
        if row_bytes == 512:
            address, *_ = self._rows(name, block, WHOLE, plane)
            there = ops.where_less(block, whole, row, 0)
            address = ops.address(address, ops.mad(there, 32, self._work.lane), 16)
            return ops.load4(address, 0)

        def of_whole(_):
            return self.load_row(name, block, WHOLE, plane, row)

        def of_rest(_):
            return [*self.load_row(name, block, quarters, plane, row), 0, 0]

        return ops.cond(ops.where_less(block, whole, 1, 0), [0] * 4, of_whole, of_rest)

    def copy_rows(self, scratch: Scratch, name: str, block: Value, slot: Value) -> None:
        """Starts to copy this lane's words of a whole block, of one plane, to shared memory."""
        ops = self._ops
        (plane,) = self._planes(name)
        address, rows, row_bytes = self._rows(name, block, WHOLE, plane)
        address = ops.address(address, self._work.lane, row_bytes // 32)
        for row in range(rows):
            scratch.copy_row(name, row, slot, address, row_bytes * row, row_bytes // 32)

    def prefetch(self, name: str, block: Value) -> None:
        """Has the words of a whole block brought near, or of the last one if there is none."""
        ops = self._ops
        if not self._packed.whole_blocks:
            return
        block = ops.min(block, self._packed.whole_blocks - 1)
        for plane in self._planes(name):
            address, rows, row_bytes = self._rows(name, block, WHOLE, plane)
            self._prefetch_lines(address, rows * row_bytes)
        coding = self._coding(name)
        if coding.signs:
            size = BLOCK * coding.scale_bits // 8
            self._prefetch_lines(self._of_block(f"{name}_scale", block, size), size)
        if coding.id_bits:
            size = 32 * coding.id_bits
            self._prefetch_lines(self._of_block(f"{name}_id", block, size), size)

    def _prefetch_lines(self, address: Value, size: int) -> None:
        """Has that many bytes brought near, a line a lane."""
        ops = self._ops
        line = ops.min(self._work.lane, -(-size // LINE) - 1)
        ops.prefetch(ops.address(address, line, LINE), 0)

    def _planes(self, name: str) -> list[Plane]:
        return self._spec.planes(getattr(self._packed, name))

    def _rows(self, name: str, block: Value, quarters: int, plane: Plane) -> tuple[Value, int, int]:
        """Address of a plane of a block's first row, number of rows, bytes of each."""
        ops, dim = self._ops, self._spec.plane_dim
        count = layouts.key_words if name == "key" else layouts.value_words
        plane_bytes = 4 * count(self._packed.num_positions, dim)
        number = ops.mad(self._work.stored_head, len(self._planes(name)), plane.number)
        address = ops.address(self._operand(name), number, plane_bytes)
        address = ops.address(address, block, BLOCK * dim // 8)
        rows, row_bytes = dim // 16, 512
        if name == "key":
            rows = rows * quarters // WHOLE
        elif quarters <= 2:
            row_bytes = 256
        return address, rows, row_bytes

    def load_position_words(self, name: str, block: Value) -> list[Value]:
        """This lane's words of a block's scales, then those of `load_ids`; none for level codes."""
        ops, coding = self._ops, self._coding(name)
        if not coding.signs:
            return []
        address = self._of_block(f"{name}_scale", block, BLOCK * coding.scale_bits // 8)
        address = ops.address(address, self._work.lane, coding.scale_bits)
        scales = (ops.load2 if coding.scale_bits == 8 else ops.load4)(address, 0)
        return [*scales, *self.load_ids(name, block)]

    def load_ids(self, name: str, block: Value) -> list[Value]:
        """Words of the centroids' numbers: bit p that of the block's position 8 p + g.

        A codebook's numbers are bytes, in the order of 8-bit scales.
        """
        ops, coding = self._ops, self._coding(name)
        bits = coding.id_bits
        if not bits:
            return []
        if coding.codebook:
            address = self._of_block(f"{name}_id", block, BLOCK)
            return ops.load2(ops.address(address, self._work.lane, 8), 0)
        address = self._of_block(f"{name}_id", block, 32 * bits)
        address = ops.address(address, self._work.g, 4 * bits)
        return [ops.load(address)] if bits == 1 else ops.load2(address, 0)

    def load_nearest_ids(self, names: Sequence[str], block: Value) -> list[Value]:
        """`load_ids` of each side, of the nearest of the warp's blocks to one that may be none."""
        ops = self._ops
        near = ops.max(ops.min(block, ops.sub(self.last, 1)), 0)
        return [word for name in names for word in self.load_ids(name, near)]

    def _coding(self, name: str) -> Coding:
        return self._packed.key if name == "key" else self._packed.value

    def _of_block(self, name: str, block: Value, size: int) -> Value:
        """Address of what belongs to a block, `size` bytes."""
        ops = self._ops
        number = ops.mad(self._work.stored_head, self._num_blocks, block)
        return ops.address(self._operand(name), number, size)

    def _operand(self, name: str) -> Value:
        """Address of an operand of the class's own."""
        return self._ops.pointer(f"{self._packed.name}{name}")

    @property
    def _num_blocks(self) -> Value:
        """Blocks of the class."""
        return self._packed.blocks

    @property
    def _first_entry(self) -> Value:
        """Where the class's entries begin among those of all classes."""
        return sum(self._spec.entry_slots[: self._packed.number])

    def decode_scales(self, words: Sequence[Value], coding: Coding) -> list[Value]:
        """The lane's eight scales as floats, from bfloat16 or `log_scale` codes; none of none."""
        ops = self._ops
        scales = []
        for i in range(8 if words else 0):
            word = words[i * coding.scale_bits // 32]
            if coding.scale_bits == 16:
                bits = ops.bit_and(word, 0xFFFF0000) if i % 2 else ops.shift_left(word, 16)
                scales.append(ops.from_bits(bits))
            else:  # 2^((code - 128) / 8); code 0 is 0
                bits = ops.bytes(word, TO_INT_BITS, 0x7540 + i % 4)
                power = ops.fma(ops.from_bits(bits), 1 / 8, -(TO_INT + 128) / 8)
                zero = TO_INT_BITS + 1
                scales.append(ops.where_less_float(bits, zero, 0.0, ops.exp2(power)))
        return scales

    def add_bias(
        self, block: Value, sets: Sequence[list[Value]], place: Value, stride: int
    ) -> list[list[Value]]:
        """Scores with the key bias's share, if there is one.

        Score i is that of the block's position place + stride * i, of the team's only query or, for
        each set, of query t.
        """
        if not self._spec.biased:
            return list(sets)
        if self._spec.bias_axes:
            return self._add_looked_up(block, sets, place, stride)
        several = self._spec.uses_bytes
        queries = [
            self._work.team_query(self._work.t, SET * number) if several else 0
            for number in range(len(sets))
        ]
        return [
            self._add_given(block, scores, query, place, stride)
            for scores, query in zip(sets, queries, strict=True)
        ]

    def _add_given(
        self, block: Value, scores: Sequence[Value], query: Value, place: Value, stride: int
    ) -> list[Value]:
        """`add_bias` of the share of each slot, for one query of the team."""
        ops, work = self._ops, self._work
        row = work.row(work.query(query))
        address = ops.address(
            self._operand("bias"), ops.mad(row, self._num_blocks, block), 4 * BLOCK
        )
        address = ops.address(address, place, 4)
        shares = [ops.load_float(address, 4 * stride * i) for i in range(len(scores))]
        return [ops.fma(x, LOG2_E, score) for x, score in zip(shares, scores, strict=True)]

    def _add_looked_up(
        self, block: Value, sets: Sequence[list[Value]], place: Value, stride: int
    ) -> list[list[Value]]:
        """`add_bias` by each slot's positions, from a table of all queries."""
        ops, spec, work, packed = self._ops, self._spec, self._work, self._packed
        owner = work.head if packed.of_classes else work.sequence
        words = ops.address(ops.pointer("entry"), owner, 4 * sum(spec.entry_slots))
        words = ops.address(words, ops.mad(block, BLOCK, self._first_entry), 4)
        words = ops.address(words, place, 4)
        row_bytes = 4 * spec.bias_columns * spec.teams
        table = ops.address(ops.pointer("bias"), work.number, 4 * spec.bias_columns)
        if spec.uses_bytes:
            table = ops.address(table, work.t, 4 * len(sets))
        found: list[list[Value]] = [[] for _ in sets]
        for i, scores in enumerate(zip(*sets, strict=True)):
            totals = list(scores)
            for axis, field in enumerate(self._fields(ops.load(words, 4 * stride * i))):
                address = ops.address(table, field, row_bytes)
                offset = axis * spec.bias_positions * row_bytes
                load = ops.load_float2 if len(sets) == 2 else ops.load_float
                shares = load(address, offset)
                shares = shares if len(sets) == 2 else [shares]
                totals = [ops.fma(x, LOG2_E, y) for x, y in zip(shares, totals, strict=True)]
            for of_set, total in zip(found, totals, strict=True):
                of_set.append(total)
        return found

    def _fields(self, word: Value) -> list[Value]:
        """The number of a position on each axis, see `vkq_jax.KeyBias.entries`."""
        ops, axes = self._ops, self._spec.bias_axes
        if axes == 1:
            return [word]
        shifted = [
            ops.shift_right(word, FIELD_BITS * axis) if axis else word for axis in range(axes)
        ]
        return [ops.bit_and(x, (1 << FIELD_BITS) - 1) for x in shifted]

    def hide(
        self,
        block: Value,
        sets: Sequence[list[Value]],
        place: Value,
        stride: int,
        hidden: float = 2 * LOWEST,
    ) -> list[list[Value]]:
        """Scores of positions that are not visible become `hidden`: too low to have weight.

        Score i is that of the block's position place + stride * i, of the team's only query or, for
        each set, of query t.
        """
        ops, count = self._ops, len(sets[0])
        before = ops.mad(block, BLOCK, 0)
        left = ops.sub(self.length, before)

        def hide_padding(scores):
            mine = ops.sub(left, place)
            return [
                ops.where_less_float(stride * (i % count), mine, score, hidden)
                for i, score in enumerate(scores)
            ]

        def hide_beginning(scores):
            mine = [ops.sub(ops.sub(start, before), place) for start in self.starts]
            return [
                ops.where_less_float(stride * (i % count), mine[i // count], hidden, score)
                for i, score in enumerate(scores)
            ]

        scores = [score for of_set in sets for score in of_set]
        scores = ops.cond(ops.where_less(left, stride * count, 1, 0), scores, hide_padding)
        if self._spec.windowed:
            hides = ops.where_less(before, self.last_start, 1, 0)
            scores = ops.cond(hides, scores, hide_beginning)
        return [scores[i : i + count] for i in range(0, len(scores), count)]
