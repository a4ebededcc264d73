"""One launch of a kernel that reads visual positions, and which of them a thread block takes."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import split_bfloat16
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import Side
from vkq_jax.bits.log_scale import PER_OCTAVE, ZERO_POINT

__all__ = [
    "HALF",
    "INFINITY",
    "MAGNITUDE",
    "PIECE",
    "WARPS",
    "HalfBlock",
    "QuantizeSpec",
    "image_bytes",
    "log_scale_code",
]

HALF = layouts.BLOCK // 2  # positions of a thread block
WARPS = HALF // 32
PIECE = 16  # bytes that a lane copies at once
# Bits of floats: all but the sign; infinity, which are all of the exponent.
MAGNITUDE, INFINITY = 0x7FFFFFFF, 0x7F800000
_LARGEST = 2.0**100  # elements saturate, see vkq_jax.codes.sign_codes


def image_bytes(head_dim: int) -> int:
    """Shared memory of the words of a plane of a half block."""
    return HALF * head_dim // 8


def log_scale_code(ops: Operations, logarithm: Value) -> Value:
    """The code of a scale in 8 bits, of its logarithm to base 2; see vkq_jax.bits.log_scale."""
    code = ops.to_int(ops.fmul(logarithm, float(PER_OCTAVE)))
    return ops.min(ops.max(ops.add(code, ZERO_POINT), 0), 255)


@dataclasses.dataclass(frozen=True)
class QuantizeSpec:
    """One launch: the keys or the values of one layer.

    Attributes:
        batch, tokens, kv_heads, head_dim: of the activations [B, T, K, H].
        element_bytes: of an activation: 2 (bfloat16) or 4 (float32).
        num_positions: V. side: keys or values. scale_bits, rotated, gamma: as in `SignCodes`.
    """

    batch: int
    tokens: int
    kv_heads: int
    head_dim: int
    element_bytes: int
    num_positions: int
    side: Side
    scale_bits: int
    rotated: bool
    gamma: float

    @property
    def halves(self) -> int:
        """Half blocks of a head; the last block may have only one."""
        return -(-self.num_positions // HALF)

    @property
    def grid(self) -> int:
        """Thread blocks."""
        return self.batch * self.halves * self.kv_heads

    @property
    def words(self) -> int:
        """Words of the codes of one head."""
        count = layouts.key_words if self.side == "key" else layouts.value_words
        return count(self.num_positions, self.head_dim)

    @property
    def scale_words(self) -> int:
        """Words of a lane's scales in a block."""
        return 8 * self.scale_bits // 32

    @property
    def row_bytes(self) -> int:
        """Bytes of one position of one head."""
        return self.head_dim * self.element_bytes

    @property
    def stride(self) -> int:
        """Bytes from row to row in shared memory: eight lanes' pieces lie in different banks."""
        return self.row_bytes + PIECE

    @property
    def warp_bytes(self) -> int:
        """Shared memory of a warp: its rows, then the centre (float32; twice where it is small)."""
        return 32 * self.stride + 32 * PIECE

    @property
    def shared_words(self) -> int:
        """Words of shared memory of a thread block: warps, image, scales."""
        return (WARPS * self.warp_bytes + image_bytes(self.head_dim)) // 4 + HALF


class HalfBlock:
    """Which positions of which head are this thread block's; those of a warp lie in its lanes.

    Attributes:
        thread, lane, warp: numbers in the thread block.
        kv_head, sequence: of the head. head: its number among those of all sequences.
        half: number of the half block.
    """

    def __init__(self, ops: Operations, spec: QuantizeSpec):
        """Computes them all."""
        self._ops, self._spec = ops, spec
        self.thread = ops.thread_index()
        self.lane = ops.bit_and(self.thread, 31)
        self.warp = ops.uniform(ops.shift_right(self.thread, 5))
        block = ops.block_index()  # heads of a token lie side by side: they come one after another
        self.kv_head = ops.rem(block, spec.kv_heads)
        half = ops.div(block, spec.kv_heads)
        self.half = ops.rem(half, spec.halves)
        self.sequence = ops.div(half, spec.halves)
        self.head = ops.mad(self.sequence, spec.kv_heads, self.kv_head)

    def load_position(self) -> tuple[Value, Value]:
        """The token of this lane's visual position, and whether there is one, a word."""
        ops = self._ops
        first = ops.mad(self.sequence, HALF * self._spec.halves, ops.mad(self.half, HALF, 0))
        at = ops.address(ops.pointer("position"), ops.add(first, self.thread), 4)
        position = ops.load(at)
        return ops.max(position, 0), ops.where_less(position, 0, 0, 1)

    def row(self, position: Value) -> Value:
        """The row of x that a token's activations are in."""
        token = self._ops.mad(self.sequence, self._spec.tokens, position)
        return self._ops.mad(token, self._spec.kv_heads, self.kv_head)

    def floats(self, words: Sequence[Value]) -> list[Value]:
        """The activations in these words."""
        ops = self._ops
        if self._spec.element_bytes == 4:
            return [ops.from_bits(word) for word in words]
        return [ops.from_bits(bits) for word in words for bits in split_bfloat16(ops, word)]

    def saturated(self, x: Value) -> Value:
        """An activation as it is coded: 0 where it is not finite, else between +-2^100."""
        ops = self._ops
        magnitude = ops.bit_and(ops.as_bits(x), MAGNITUDE)
        finite = ops.where_less_float(magnitude, INFINITY, x, 0.0)
        return ops.fmin(ops.fmax(finite, -_LARGEST), _LARGEST)

    def not_finite(self, x: Value) -> Value:
        """The word 1 where a float is NaN or infinite, else 0."""
        ops = self._ops
        return ops.where_less(ops.bit_and(ops.as_bits(x), MAGNITUDE), INFINITY, 0, 1)
