"""Bit packing: the one place where bit order is defined.

Codes of `bits` bits are packed along the last axis into uint32 words, little-endian: with
P = 32 // bits codes to a word, code i lies in word i // P at bits [bits * (i % P), bits * (i % P) +
bits). The unused high bits of the last word are zero. Codes of three levels (`TERNARY`) are the
digits of bytes in base 3, five to a byte, the first the lowest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Int32, Shaped, UInt8, UInt32

Words = UInt32[Array, "*lead W"] | UInt8[Array, "*lead W"]

__all__ = [
    "SUPPORTED_BITS",
    "TERNARY",
    "Words",
    "as_words",
    "check_bits",
    "check_words",
    "highest_code",
    "num_words",
    "pack",
    "unpack",
]

SUPPORTED_BITS = (1, 2, 4, 8)
TERNARY = 1.6
"""Bits of a code of three levels, as they are stored; log2(3) is 1.585."""

_DIGITS = 5  # of a byte in base 3


def check_bits(bits: int | float) -> None:
    """Raises ValueError unless `bits` is a width that codes can have."""
    whole = isinstance(bits, int) and bits in SUPPORTED_BITS
    if not whole and bits != TERNARY:
        raise ValueError(f"bits must be {TERNARY} or one of {SUPPORTED_BITS}, got {bits}")


def highest_code(bits: int | float) -> int:
    """The greatest code, one less than there are levels."""
    check_bits(bits)
    return 2 if bits == TERNARY else 2 ** int(bits) - 1


def check_words(packed: Words, bits: int | float, length: int) -> None:
    """Raises ValueError for words that `pack` does not make of `length` codes."""
    words = num_words(length, bits)
    if packed.shape[-1] != words:
        raise ValueError(
            f"{length} codes of {bits} bits take {words} words, got {packed.shape[-1]}"
        )
    used = length - _per_word(bits) * (words - 1)  # codes of the last word
    if bits == TERNARY:
        most = np.full(words, 3**_DIGITS - 1, np.uint8)
        most[-1:] = 3**used - 1
        if (packed > jnp.broadcast_to(most, packed.shape)).any():
            raise ValueError(
                f"bytes of {length} codes in base 3 must be below {3**_DIGITS}, "
                f"the last one below {3**used}"
            )
        return
    used = used * int(bits)
    if words and used < 32 and (packed[..., -1] >> jnp.uint32(used)).any():
        raise ValueError(f"the unused high bits of the last word of {length} codes must be 0")


def num_words(length: int, bits: int | float) -> int:
    """Words (of three levels: bytes) that hold `length` codes of `bits` bits."""
    return -(-length // _per_word(bits))


def pack(codes: Shaped[Array, "*shape"], bits: int | float, axis: int = -1) -> Words:
    """Packs unsigned integer (or, at 1 bit, boolean) codes, at least 0, along an axis."""
    axis %= codes.ndim
    length = codes.shape[axis]
    words, per_word = num_words(length, bits), _per_word(bits)
    fields, missing = codes.astype(jnp.uint32), words * per_word - length
    if missing:
        fields = jnp.pad(fields, [(0, missing if n == axis else 0) for n in range(codes.ndim)])
    fields = fields.reshape(*codes.shape[:axis], words, per_word, *codes.shape[axis + 1 :])
    places = (1,) * (axis + 1) + (per_word,) + (1,) * (codes.ndim - axis - 1)
    # Fields do not overlap, so a sum is a bitwise or.
    if bits == TERNARY:
        fields = fields * _powers_of_three(1).reshape(places)
        return fields.sum(axis + 1).astype(jnp.uint8)
    return (fields << _shifts(int(bits), 1).reshape(places)).sum(axis + 1, dtype=jnp.uint32)


def as_words(x: Shaped[Array, "*lead n"]) -> UInt32[Array, "*lead W"]:
    """The bits of elements of 1, 2 or 4 bytes, several to a word; n is a multiple of those.

    Their bitcast, made of shifts: XLA fuses those with what makes `x`.
    """
    size = x.dtype.itemsize
    fields = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
    words = fields[..., :: 4 // size]
    for n in range(1, 4 // size):
        words |= fields[..., n :: 4 // size] << jnp.uint32(8 * size * n)
    return words


def unpack(packed: Words, bits: int | float, length: int) -> Int32[Array, "*lead n"]:
    """The first `length` codes of packed words: the inverse of `pack`."""
    if bits == TERNARY:
        words = packed.astype(jnp.uint32)[..., None]
        fields = words // _powers_of_three(words.ndim) % jnp.uint32(3)
    else:
        mask = jnp.uint32(highest_code(bits))
        fields = (packed[..., None] >> _shifts(int(bits), packed.ndim + 1)) & mask
    # No -1 in the shape: there may be no positions at all.
    codes = fields.reshape(*packed.shape[:-1], packed.shape[-1] * _per_word(bits))
    return codes[..., :length].astype(jnp.int32)


def _per_word(bits: int | float) -> int:
    check_bits(bits)
    return _DIGITS if bits == TERNARY else 32 // int(bits)


def _shifts(bits: int, ndim: int) -> UInt32[np.ndarray, "..."]:
    """Where each field of a word begins, on the last of `ndim` axes; a constant of the program."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return shifts.reshape(*[1] * (ndim - 1), -1)


def _powers_of_three(ndim: int) -> UInt32[Array, "..."]:
    """The value of each digit of a word, on the last of `ndim` axes."""
    powers = jnp.asarray([3**i for i in range(_DIGITS)], jnp.uint32)
    return powers.reshape(*[1] * (ndim - 1), -1)
