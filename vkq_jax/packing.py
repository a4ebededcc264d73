"""Bit packing: the one place where bit order is defined.

Codes of `bits` bits are packed along the last axis into uint32 words, little-endian: with
P = 32 // bits codes to a word, code i lies in word i // P at bits [bits * (i % P), bits * (i % P) +
bits). The unused high bits of the last word are zero.
"""

import jax.numpy as jnp

from vkq_jax.array_types import Array, Int32, Shaped, UInt32

__all__ = ["SUPPORTED_BITS", "check_bits", "check_words", "num_words", "pack", "unpack"]

SUPPORTED_BITS = (1, 2, 4, 8)


def check_bits(bits: int) -> None:
    """Raises ValueError unless `bits` is a width that codes can have."""
    if bits not in SUPPORTED_BITS:
        raise ValueError(f"bits must be one of {SUPPORTED_BITS}, got {bits}")


def check_words(packed: UInt32[Array, "*lead W"], bits: int, length: int) -> None:
    """Raises ValueError unless these are words that `pack` makes of `length` codes."""
    words = num_words(length, bits)
    if packed.shape[-1] != words:
        raise ValueError(
            f"{length} codes of {bits} bits take {words} words, got {packed.shape[-1]}"
        )
    used = length * bits - 32 * (words - 1)  # bits of the last word
    if words and used < 32 and (packed[..., -1] >> jnp.uint32(used)).any():
        raise ValueError(f"the unused high bits of the last word of {length} codes must be 0")


def num_words(length: int, bits: int) -> int:
    """Words that hold `length` codes of `bits` bits."""
    check_bits(bits)
    return -(-length * bits // 32)


def pack(codes: Shaped[Array, "*lead n"], bits: int) -> UInt32[Array, "*lead W"]:
    """Packs unsigned integer (or, at 1 bit, boolean) codes in [0, 2^bits) along the last axis."""
    *lead, length = codes.shape
    words, per_word = num_words(length, bits), 32 // bits
    padding = [(0, 0)] * len(lead) + [(0, words * per_word - length)]
    fields = jnp.pad(codes.astype(jnp.uint32), padding).reshape(*lead, words, per_word)
    # Fields do not overlap, so a sum is a bitwise or.
    return (fields << _shifts(bits, fields.ndim)).sum(-1, dtype=jnp.uint32)


def unpack(packed: UInt32[Array, "*lead W"], bits: int, length: int) -> Int32[Array, "*lead n"]:
    """The first `length` codes of packed words: the inverse of `pack`."""
    fields = (packed[..., None] >> _shifts(bits, packed.ndim + 1)) & jnp.uint32(2**bits - 1)
    # No -1 in the shape: there may be no positions at all.
    codes = fields.reshape(*packed.shape[:-1], packed.shape[-1] * (32 // bits))
    return codes[..., :length].astype(jnp.int32)


def _shifts(bits: int, ndim: int) -> UInt32[Array, "..."]:
    """Where each field of a word begins, on the last of `ndim` axes."""
    check_bits(bits)
    shifts = jnp.arange(0, 32, bits, dtype=jnp.uint32)
    return shifts.reshape(*[1] * (ndim - 1), -1)
