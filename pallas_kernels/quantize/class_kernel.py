"""The body of one thread block: tokens of one class coded in Hadamard planes.

A launch takes keys and values of all classes with bits. As in `quantize_kernel`, a lane codes one
token, with all its channels in registers:

| step | who | how |
|---|---|---|
| gather | the warp, 16 bytes a lane | rows to shared memory, 16 bytes between them |
| u = x / unit - centre | lane | of its own centroid, in shared memory |
| z = R u, codes, <u, D s> | lane | butterflies between registers; adding 2^23 rounds a code |
| words and scale | thread block | `tiled_image`, a plane after another |

A thread block finds out when it runs which class and which side are its own: numbers tell them
apart, and branches where words are put in order. A warp without tokens reads nothing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import butterflies, chosen, dot, in_chains, split_bfloat16
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import Side
from pallas_kernels.quantize.half_block import HALF, PIECE, WARPS, image_bytes, log_scale_code
from pallas_kernels.quantize.tiled_image import TiledImage
from vkq_jax.codes.normal_steps import NORMAL_STEPS

__all__ = ["SIDES", "ClassKernel", "ClassesSpec", "ScaleRule"]

SIDES: tuple[Side, ...] = ("key", "value")
ScaleRule = Literal["unbiased", "between", "norm"]
_SHARES = {"unbiased": (1.0, 0.0), "between": (0.5, 0.5), "norm": (0.0, 1.0)}
_ROUND = 2.0**23  # a float from here on has no digits behind the point
_LEAST = 2.0**-126


@dataclasses.dataclass(frozen=True)
class ClassesSpec:
    """One launch: keys and values of one layer, all classes.

    Attributes:
        heads: of all sequences. positions, head_dim: of tokens [2, heads, V, H].
        centres: M. capacities, planes: of each class.
        rules: of scales, of keys and of values.
    """

    heads: int
    positions: int
    head_dim: int
    centres: int
    capacities: tuple[int, ...]
    planes: tuple[int, ...]
    rules: tuple[ScaleRule, ScaleRule]

    @property
    def coded(self) -> tuple[int, ...]:
        """Classes that have bits."""
        return tuple(c for c, planes in enumerate(self.planes) if planes)

    @property
    def halves(self) -> tuple[int, ...]:
        """Half blocks of each class of a head."""
        return tuple(-(-capacity // HALF) for capacity in self.capacities)

    @property
    def slots(self) -> int:
        """Slots of a head, each class padded to whole half blocks."""
        return HALF * sum(self.halves)

    @property
    def grid(self) -> int:
        """Thread blocks: for each class with bits, of all heads of keys, then of values."""
        return 2 * self.heads * sum(self.halves[c] for c in self.coded)

    @property
    def row_bytes(self) -> int:
        """Bytes of a token of a head, in bfloat16."""
        return 2 * self.head_dim

    @property
    def stride(self) -> int:
        """Bytes from row to row in shared memory."""
        return self.row_bytes + PIECE

    @property
    def table_stride(self) -> int:
        """Bytes from centroid to centroid in shared memory."""
        return 4 * self.head_dim + PIECE

    @property
    def shared_words(self) -> int:
        """Words of shared memory: rows, centroids and units, images, scales."""
        tables = (self.centres + 1) * self.table_stride
        images = max(self.planes) * image_bytes(self.head_dim)
        return (32 * WARPS * self.stride + tables + images) // 4 + HALF

    def words(self, number: int, side: Side) -> int:
        """Words of a plane of a class of a head."""
        count = layouts.key_words if side == "key" else layouts.value_words
        return count(self.capacities[number], self.head_dim)


class ClassKernel:
    """`run()` does the work of one warp.

    Operands: x [2 * heads * V, H] bfloat16, finite; slot [heads, slots] int32, the position in each
    slot, negative where there is none; ids [2 * heads, V] int32, of centroids; centre
    [2 * heads, M, H] and unit [2 * heads, H] float32, 1 / unit. Results, for each side s and each
    class c with bits: words_s_c [heads, planes, n] and scale_s_c [heads, blocks, 32, 2], as in
    `TiledDictionary`.
    """

    def __init__(self, ops: Operations, spec: ClassesSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        self._thread = ops.thread_index()
        self._lane = ops.bit_and(self._thread, 31)
        self._warp = ops.uniform(ops.shift_right(self._thread, 5))
        self._rows = ops.shared()
        self._tables = ops.add(self._rows, 32 * WARPS * spec.stride)
        self._images = ops.add(self._tables, (spec.centres + 1) * spec.table_stride)
        self._scales = ops.add(self._images, max(spec.planes) * image_bytes(spec.head_dim))
        self._find_share()

    def _find_share(self) -> None:
        """Class (its place among those with bits), side, head and half block of this block."""
        ops, spec = self._ops, self._spec
        block = ops.block_index()
        counts = [spec.halves[c] for c in spec.coded]
        starts = [0, *itertools.accumulate(2 * spec.heads * n for n in counts)][:-1]
        self._class: Value = 0
        row: Value = 0
        half: Value = 0
        for place, (start, count) in enumerate(zip(starts, counts, strict=True)):
            own = ops.sub(block, start)
            self._class = ops.where_less(block, start, self._class, place)
            row = ops.where_less(block, start, row, ops.div(own, count))
            half = ops.where_less(block, start, half, ops.rem(own, count))
        self._row, self._half = row, half  # row: of both sides
        self._side = ops.where_less(row, spec.heads, 0, 1)
        self._head = ops.where_less(row, spec.heads, row, ops.sub(row, spec.heads))

    def _of_class(self, numbers: Sequence[int]) -> Value:
        """The number of this thread block's class, from those of classes with bits."""
        return chosen(self._ops, self._class, numbers)

    def _float_of(self, place: Value, numbers: Sequence[float]) -> Value:
        value: Value = numbers[0]
        for i, number in enumerate(numbers[1:], 1):
            value = self._ops.where_less_float(place, i, value, number)
        return value

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        first = [HALF * sum(spec.halves[:c]) for c in spec.coded]
        slot = ops.add(self._of_class(first), ops.mad(self._half, HALF, self._thread))
        slot = ops.mad(self._head, spec.slots, slot)
        position = ops.load(ops.address(ops.pointer("slot"), slot, 4))
        valid = ops.where_less(position, 0, 0, 1)
        position = ops.max(position, 0)
        any_valid = ops.ballot(valid)
        self._copy_tables()
        ops.cond(any_valid, [], lambda _: self._copy_rows(position))
        ops.group_copies()
        ops.wait_for_copies()
        ops.barrier()
        most = max(spec.planes)
        nothing = [0] * (most * spec.head_dim // 32 + 1)
        *words, scale = ops.cond(any_valid, nothing, lambda _: self._code(position, valid))
        each = spec.head_dim // 32
        planes = [words[i : i + each] for i in range(0, len(words), each)]
        for number, side in enumerate(SIDES):
            self._where(self._side, number, functools.partial(self._put, side, planes, scale))
        ops.barrier()
        for number, side in enumerate(SIDES):
            for place, c in enumerate(spec.coded):
                own = ops.mad(self._class, len(SIDES), self._side)
                here = len(SIDES) * place + number
                self._where(own, here, functools.partial(self._write, side, c))

    def _where(self, own: Value, number: int, work: Callable[[], None]) -> None:
        """Does the work in thread blocks whose number is this one."""

        def branch(_: list[Value]) -> list[Value]:
            work()
            return []

        self._ops.cond(self._ops.equal(own, number), [], branch)

    def _copy_tables(self) -> None:
        """Starts to copy centroids and units to shared memory."""
        ops, spec = self._ops, self._spec
        pieces = spec.head_dim // 4
        for name, first, count in (("centre", 0, spec.centres), ("unit", spec.centres, 1)):
            base = ops.address(ops.pointer(name), self._row, 4 * spec.head_dim * count)
            for start in range(0, count * pieces, 32 * WARPS):
                number = ops.add(self._thread, start)
                exists = ops.where_less(number, count * pieces, 1, 0)
                number = ops.min(number, count * pieces - 1)
                row, piece = ops.div(number, pieces), ops.rem(number, pieces)
                target = ops.mad(ops.add(row, first), spec.table_stride, self._tables)
                target = ops.mad(piece, PIECE, target)
                ops.copy_to_shared_where(exists, target, ops.address(base, number, PIECE))

    def _copy_rows(self, position: Value) -> list[Value]:
        """Starts to copy the rows of this warp's tokens, whole rows side by side."""
        ops, spec = self._ops, self._spec
        pieces = spec.row_bytes // PIECE
        at_once = 32 // pieces
        row, piece = ops.div(self._lane, pieces), ops.rem(self._lane, pieces)
        source = ops.mad(self._row, spec.positions, position)
        start = ops.address(ops.pointer("x"), piece, PIECE)
        rows = ops.mad(self._warp, 32 * spec.stride, self._rows)
        target = ops.mad(piece, PIECE, ops.mad(row, spec.stride, rows))
        for first in range(0, 32, at_once):
            taken = ops.take(source, ops.add(row, first))
            address = ops.address(start, taken, spec.row_bytes)
            ops.copy_to_shared(target, first * spec.stride, address)
        return []

    # One token a lane -----------------------------------------------------------------------------

    def _residual(self, position: Value) -> list[Value]:
        """The channels of x / unit - centre."""
        ops, spec = self._ops, self._spec
        mine = ops.mad(self._thread, spec.stride, self._rows)
        number = ops.mad(self._row, spec.positions, position)
        ids = ops.load(ops.address(ops.pointer("ids"), number, 4))
        own = ops.mad(ids, spec.table_stride, self._tables)
        units = spec.centres * spec.table_stride
        u = []
        for first in range(0, spec.head_dim, 8):
            words = ops.load_shared4(mine, 2 * first)
            x = [ops.from_bits(bits) for word in words for bits in split_bfloat16(ops, word)]
            unit, centre = (
                [
                    ops.from_bits(word)
                    for offset in (0, 16)
                    for word in ops.load_shared4(at, 4 * first + offset)
                ]
                for at in (ops.add(self._tables, units), own)
            )
            u += [ops.fsub(ops.fmul(*pair), c) for *pair, c in zip(x, unit, centre, strict=True)]
        return u

    def _code(self, position: Value, valid: Value) -> list[Value]:
        """Words of this lane's token, plane after plane, then its scale's bits."""
        ops, spec = self._ops, self._spec
        planes = [spec.planes[c] for c in spec.coded]
        u = self._residual(position)
        square = in_chains(ops.fadd, [dot(ops, u[i::8], u[i::8]) for i in range(8)])
        some = ops.where_less(0, ops.as_bits(square), valid, 0)  # not all channels are 0
        of_square = ops.log2(ops.fmax(square, _LEAST))
        first, dim = u[0], float(spec.head_dim)
        z = butterflies(ops, u)  # times sqrt(H)
        power = ops.exp2(ops.fmul(of_square, -0.5))  # 1 / (size sqrt(H))
        factor = ops.fmul(power, self._float_of(self._class, [1 / NORMAL_STEPS[p] for p in planes]))
        top = self._float_of(self._class, [2.0**p - 1 for p in planes])
        middle = ops.fmul(top, 0.5)
        words: list[list[Value]] = [[] for _ in range(max(planes))]
        products: list[Value] = [0.0] * 8
        for start in range(0, spec.head_dim, 32):
            word: list[Value] = [0] * max(planes)
            for channel in reversed(range(start, start + 32)):
                v = ops.fma(z[channel], factor, middle)
                v = ops.fadd(ops.fmin(ops.fmax(v, 0.0), top), _ROUND)
                code = ops.as_bits(v)  # its last bits
                products[channel % 8] = ops.fma(
                    z[channel], ops.fsub(v, _ROUND), products[channel % 8]
                )
                word = [
                    ops.shift_in(old, ops.shift_left(code, 31 - plane))
                    for plane, old in enumerate(word)
                ]
            for plane, found in enumerate(word):
                words[plane].append(ops.bit_and(found, ops.sub(0, some)))
        # <z, 2 code - top>, where the sum of all channels of R u is that of one channel of u.
        total = in_chains(ops.fadd, products)
        along = ops.fsub(ops.fadd(total, total), ops.fmul(ops.fmul(first, dim), top))
        along = ops.fmul(along, dim**-0.5)
        return [*itertools.chain(*words), self._scale(of_square, along, some)]

    def _scale(self, of_square: Value, along: Value, some: Value) -> Value:
        """Bits of the scale, by the rule of this side, in logarithms."""
        ops, spec = self._ops, self._spec
        steps = [NORMAL_STEPS[spec.planes[c]] for c in spec.coded]
        norm = self._float_of(self._class, [step / (2 * spec.head_dim**0.5) for step in steps])
        of_norm = ops.fma(of_square, 0.5, ops.log2(norm))
        of_fit = ops.fsub(of_square, ops.log2(ops.fmax(along, _LEAST)))
        shares = zip(*(_SHARES[rule] for rule in spec.rules), strict=True)
        fit, unscaled = (self._float_of(self._side, share) for share in shares)
        logarithm = ops.fma(of_fit, fit, ops.fmul(of_norm, unscaled))
        return ops.mad(log_scale_code(ops, logarithm), some, 0)

    # To device memory -----------------------------------------------------------------------------

    def _image(self, side: Side, number: int) -> TiledImage:
        """The half block, of a class of this number."""
        spec = self._spec
        return TiledImage(
            self._ops,
            spec.head_dim,
            self._thread,
            self._lane,
            self._warp,
            self._half,
            halves=spec.halves[number],
            words=spec.words(number, side),
            image=self._images,
            scales=self._scales,
        )

    def _put(self, side: Side, planes: Sequence[Sequence[Value]], scale: Value) -> None:
        image = self._image(side, self._spec.coded[0])  # the order of words is that of all classes
        for plane, words in enumerate(planes):
            image.put_words(side, words, plane)
        image.put_scale(scale)

    def _write(self, side: Side, number: int) -> None:
        """All planes and the scales of a class."""
        ops, spec, image = self._ops, self._spec, self._image(side, number)
        base = ops.pointer(f"words_{side}_{number}")
        for plane in range(spec.planes[number]):
            row = ops.mad(self._head, spec.planes[number], plane)
            image.write_words(side, base, ops.mad(row, image.words, 0), plane)
        blocks = layouts.num_blocks(spec.capacities[number])
        block = ops.mad(self._head, blocks, ops.shift_right(self._half, 1))
        image.write_scales(8, ops.pointer(f"scale_{side}_{number}"), block)
