"""Small computations of a warp, made of `Operations`."""

import functools
import math
from collections.abc import Callable, Sequence

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.layout.layouts import Plane

__all__ = [
    "ALL_LANES",
    "LOG2_E",
    "LOWEST",
    "SAME_QUERY",
    "butterflies",
    "by_lane_pair",
    "bytes_as_bfloat16",
    "chosen",
    "dot",
    "exchange_float",
    "in_chains",
    "join_planes",
    "merge",
    "of_lane_row",
    "rotate",
    "soft_capped",
    "split_bfloat16",
    "warp_max_float",
    "warp_sum",
]

LOG2_E = math.log2(math.e)  # scores are in units of log2 inside the kernel
# A score that no position has. Finite, so that differences are; products with it are exact.
LOWEST = -(2.0**100)
ALL_LANES = (1, 2, 4, 8, 16)  # bits of lanes' numbers
SAME_QUERY = (4, 8, 16)  # of lanes that share t, where query t is theirs


def in_chains(op: Callable[[Value, Value], Value], values: Sequence[Value]) -> Value:
    """Values joined by an associative operation, eight in a chain that waits for no other."""
    chains = -(-len(values) // 8)
    return functools.reduce(op, [functools.reduce(op, values[i::chains]) for i in range(chains)])


def dot(ops: Operations, a: Sequence[Value], b: Sequence[Value]) -> Value:
    """Sum of products of what a lane holds."""
    return functools.reduce(lambda sum, pair: ops.fma(*pair, sum), zip(a, b, strict=True), 0.0)


def exchange_float(ops: Operations, x: Value, bit: int) -> Value:
    """The float of the lane whose number differs in the bit of value `bit`."""
    return ops.from_bits(ops.exchange(ops.as_bits(x), bit))


def warp_sum(ops: Operations, x: Value, bits: Sequence[int] = ALL_LANES) -> Value:
    """Sum over the lanes whose numbers differ in `bits`, in all of them."""
    for bit in bits:
        x = ops.fadd(x, exchange_float(ops, x, bit))
    return x


def warp_max_float(ops: Operations, x: Value) -> Value:
    """Greatest float of the warp, by the order of its bits (negative ones turned around)."""

    def ordered(bits):
        return ops.bit_xor(bits, ops.bit_and(ops.shift_right_signed(bits, 31), 0x7FFFFFFF))

    return ops.from_bits(ordered(ops.warp_max(ordered(ops.as_bits(x)))))


def rotate(
    ops: Operations,
    x: Sequence[Value],
    lane: Value,
    head_dim: int,
    bits: Sequence[int] = ALL_LANES,
) -> list[Value]:
    """The orthonormal Hadamard rotation of a vector spread over lanes that differ in `bits`.

    One butterfly for each bit of the channel's number. Which bits are the lane's and which those of
    the place k in the lane does not matter: the matrix is a product of one factor for each.
    """
    x = list(x)
    for bit in bits:
        upper = ops.shift_left(ops.bit_and(lane, bit), 32 - bit.bit_length())
        sign = ops.from_bits(ops.bit_xor(upper, 0x3F800000))  # -1 where the bit is set
        x = [ops.fma(v, sign, exchange_float(ops, v, bit)) for v in x]
    return [ops.fmul(v, head_dim**-0.5) for v in butterflies(ops, x)]


def butterflies(ops: Operations, x: Sequence[Value]) -> list[Value]:
    """The Hadamard rotation of what a lane holds, each element times sqrt(len(x))."""
    x = list(x)
    for bit in range(len(x).bit_length() - 1):
        step = 1 << bit
        x = [
            ops.fsub(x[k - step], v) if k & step else ops.fadd(v, x[k + step])
            for k, v in enumerate(x)
        ]
    return x


def by_lane_pair(ops: Operations, t: Value, words: Sequence[Value]) -> list[list[Value]]:
    """The words with zeros in lanes t = 2, 3, and with zeros in lanes t = 0, 1.

    A row of words of small heads holds two positions, one in either pair of lanes: a right operand
    that is zero in the other's lanes tells them apart.
    """
    return [
        [ops.where_less(t, 2, word, 0) for word in words],
        [ops.where_less(t, 2, 0, word) for word in words],
    ]


def join_planes(
    ops: Operations, planes: Sequence[Plane], sums: Sequence[Sequence[Value]]
) -> list[Value]:
    """Sums over codes, from those over each of these planes, of bit 0 the first."""
    total = list(sums[0])
    for plane, of_plane in zip(planes[1:], sums[1:], strict=True):
        weight = 2.0**plane.bit
        total = [ops.fma(x, weight, old) for x, old in zip(of_plane, total, strict=True)]
    return total


def soft_capped(ops: Operations, score: Value, cap: float, common: Value = 0.0) -> Value:
    """cap * tanh((score + common) / cap), scores in units of log2; off by about 1e-7 cap.

    tanh(x) = 1 - 2 / (1 + e^2x): where the power overflows, its reciprocal is 0.
    """
    unit, highest = 2.0 / cap, LOG2_E * cap
    power = ops.exp2(ops.fma(score, unit, ops.fmul(common, unit)))
    return ops.fma(ops.reciprocal(ops.fadd(power, 1.0)), -2.0 * highest, highest)


def bytes_as_bfloat16(ops: Operations, word: Value) -> list[Value]:
    """Four signed bytes as bfloat16, in two words.

    A byte plus 128 has no sign; as the last bits of a float it stands for 2^23 and itself.
    """
    unsigned = ops.bit_xor(word, 0x80808080)
    floats = [
        ops.fsub(ops.from_bits(ops.bytes(unsigned, 0x4B000000, 0x7440 + i)), 2.0**23 + 128)
        for i in range(4)
    ]
    return [ops.pack_bfloat16(*floats[i : i + 2]) for i in (0, 2)]


def merge(ops: Operations, parts: Sequence[Sequence[Value]]) -> list[Value]:
    """Joins partial results of a softmax: each a maximum, then sums of weights relative to it."""
    top = functools.reduce(ops.fmax, [part[0] for part in parts])
    shares = [ops.exp2(ops.fsub(part[0], top)) for part in parts]
    sums = zip(*(part[1:] for part in parts), strict=True)
    return [top, *(dot(ops, column, shares) for column in sums)]


def split_bfloat16(ops: Operations, word: Value) -> tuple[Value, Value]:
    """Both numbers of a word of bfloat16 as the bits of floats, the lower one first."""
    return ops.shift_left(word, 16), ops.bit_and(word, 0xFFFF0000)


def of_lane_row(ops: Operations, lane: Value, words: Sequence[Value]) -> Value:
    """The word of row `lane` of 32, of which lanes 4 g + t have words[j], of row 8 j + g."""
    source = ops.mad(ops.bit_and(lane, 7), 4, 0)
    own: Value = 0
    for j, word in enumerate(words):
        own = ops.where_less(lane, 8 * j, own, ops.take(word, source))
    return own


def chosen(ops: Operations, number: Value, values: Sequence[Value]) -> Value:
    """The word of that number, of these."""
    *others, found = values
    for i, value in reversed(list(enumerate(others))):
        if not (isinstance(value, int) and isinstance(found, int) and value == found):
            found = ops.where_less(number, i + 1, value, found)
    return found
