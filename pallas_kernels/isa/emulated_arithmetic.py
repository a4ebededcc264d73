"""The instructions of `Arithmetic` in NumPy."""

import ml_dtypes
import numpy as np

from pallas_kernels.isa.arithmetic import Arithmetic
from pallas_kernels.isa.emulated_values import EmulatedValues, as_float, as_signed, as_word

__all__ = ["EmulatedArithmetic"]


class EmulatedArithmetic(EmulatedValues, Arithmetic):
    """Computes an instruction for all lanes."""

    # Integers

    def unknown(self, value):
        """See `Operations.unknown`."""
        return self._full(value)

    def add(self, a, b):
        """See `Operations.add`."""
        return as_word(a) + as_word(b)

    def sub(self, a, b):
        """See `Operations.sub`."""
        return as_word(a) - as_word(b)

    def mad(self, a, b, c):
        """See `Operations.mad`."""
        return as_word(a) * as_word(b) + as_word(c)

    def div(self, a, divisor):
        """See `Operations.div`."""
        return as_word(a) // np.uint32(divisor)

    def rem(self, a, divisor):
        """See `Operations.rem`."""
        return as_word(a) % np.uint32(divisor)

    def min(self, a, b):
        """See `Operations.min`."""
        return np.minimum(as_signed(a), as_signed(b)).view(np.uint32)

    def max(self, a, b):
        """See `Operations.max`."""
        return np.maximum(as_signed(a), as_signed(b)).view(np.uint32)

    def bit_and(self, a, b):
        """See `Operations.bit_and`."""
        return as_word(a) & as_word(b)

    def bit_xor(self, a, b):
        """See `Operations.bit_xor`."""
        return as_word(a) ^ as_word(b)

    def bit_select(self, mask, a, b):
        """See `Operations.bit_select`."""
        return (as_word(a) & as_word(mask)) | (as_word(b) & ~as_word(mask))

    def shift_left(self, a, amount):
        """See `Operations.shift_left`."""
        return as_word(a) << np.uint32(amount)

    def shift_right(self, a, amount):
        """See `Operations.shift_right`."""
        return as_word(a) >> np.uint32(amount)

    def shift_right_signed(self, a, amount):
        """See `Operations.shift_right_signed`."""
        return (as_signed(a) >> np.int32(amount)).view(np.uint32)

    def rotate_left(self, a, amount):
        """See `Operations.rotate_left`."""
        wide = as_word(a).astype(np.uint64) << (as_word(amount) & np.uint32(31)).astype(np.uint64)
        return (wide | (wide >> np.uint64(32))).astype(np.uint32)

    def shift_in(self, a, b):
        """See `Operations.shift_in`."""
        return as_word(a) << np.uint32(1) | as_word(b) >> np.uint32(31)

    def bytes(self, a, b, selector):
        """See `Operations.bytes`."""
        pair = as_word(a).astype(np.uint64) | as_word(b).astype(np.uint64) << np.uint64(32)
        chosen = np.uint64(0)
        for i in range(4):
            digit = (as_word(selector) >> np.uint32(4 * i)).astype(np.uint64) & np.uint64(15)
            assert (digit < 8).all(), "sign-extending selectors are not emulated"
            byte = (pair >> (np.uint64(8) * digit)) & np.uint64(255)
            chosen = chosen | byte << np.uint64(8 * i)
        return chosen.astype(np.uint32)

    def where_less(self, a, b, x, y):
        """See `Operations.where_less`."""
        return np.where(as_signed(a) < as_signed(b), as_word(x), as_word(y))

    def equal(self, a, b):
        """See `Operations.equal`."""
        return (as_word(a) == as_word(b)).astype(np.uint32)

    def where_less_float(self, a, b, x, y):
        """See `Operations.where_less_float`."""
        return np.where(as_signed(a) < as_signed(b), as_float(x), as_float(y))

    def where_float_less(self, a, b, x, y):
        """See `Operations.where_float_less`."""
        return np.where(as_float(a) < as_float(b), as_word(x), as_word(y))

    def where_bit_float(self, a, bit, x, y):
        """See `Operations.where_bit_float`."""
        return np.where(as_word(a) >> np.uint32(bit) & np.uint32(1) != 0, as_float(x), as_float(y))

    def low_bits(self, count):
        """See `Operations.low_bits`."""
        assert (as_word(count) <= 32).all(), "more bits than a word has"
        ones = (np.uint64(1) << as_word(count).astype(np.uint64)) - np.uint64(1)
        return ones.astype(np.uint32)

    def count_bits(self, a):
        """See `Operations.count_bits`."""
        return np.bitwise_count(as_word(a)).astype(np.uint32)

    # Floats

    def fadd(self, a, b):
        """See `Operations.fadd`."""
        return as_float(a) + as_float(b)

    def fsub(self, a, b):
        """See `Operations.fsub`."""
        return as_float(a) - as_float(b)

    def fmul(self, a, b):
        """See `Operations.fmul`."""
        return as_float(a) * as_float(b)

    def fma(self, a, b, c):
        """See `Operations.fma`."""
        wide = as_float(a).astype(np.float64) * as_float(b).astype(np.float64)
        return (wide + as_float(c)).astype(np.float32)

    def fabs(self, a):
        """See `Operations.fabs`."""
        return np.abs(as_float(a))

    def fmax(self, a, b):
        """See `Operations.fmax`."""
        return np.maximum(as_float(a), as_float(b))

    def fmin(self, a, b):
        """See `Operations.fmin`."""
        return np.minimum(as_float(a), as_float(b))

    def exp2(self, a):
        """See `Operations.exp2`."""
        power = np.exp2(np.maximum(as_float(a), np.float32(-127)))
        return np.where(as_float(a) < -126, np.float32(0), power)

    def log2(self, a):
        """See `Operations.log2`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log2(as_float(a))

    def reciprocal(self, a):
        """See `Operations.reciprocal`."""
        return np.float32(1) / as_float(a)

    def to_float(self, a):
        """See `Operations.to_float`."""
        return as_signed(a).astype(np.float32)

    def to_int(self, a):
        """See `Operations.to_int`."""
        return np.rint(as_float(a)).astype(np.int32).view(np.uint32)

    def as_bits(self, a):
        """See `Operations.as_bits`."""
        return as_float(a).view(np.uint32)

    def from_bits(self, a):
        """See `Operations.from_bits`."""
        return as_word(a).view(np.float32)

    def pack_bfloat16(self, low, high):
        """See `Operations.pack_bfloat16`."""
        halves = (self._full(as_float(x)).astype(ml_dtypes.bfloat16) for x in (low, high))
        low, high = (half.view(np.uint16).astype(np.uint32) for half in halves)
        return low | high << np.uint32(16)
