"""Bit packing: the one place where bit order is defined.

Codes of `bits` bits are packed along the last axis into uint32 words, little-endian: with
P = 32 // bits codes to a word, code i lies in word i // P at bits [bits * (i % P), bits * (i % P) +
bits). The unused high bits of the last word are zero.
"""

import jax.numpy as jnp

from vkq_jax.array_types import Array, Int32, Shaped, UInt32

__all__ = ["SUPPORTED_BITS", "num_words", "pack", "unpack"]

SUPPORTED_BITS = (1, 2, 4, 8)


def num_words(length: int, bits: int) -> int:
    """Words that hold `length` codes of `bits` bits."""
    return -(-length * bits // 32)


def pack(codes: Shaped[Array, "*lead n"], bits: int) -> UInt32[Array, "*lead W"]:
    """Packs unsigned integer (or, at 1 bit, boolean) codes in [0, 2^bits) along the last axis."""
    *lead, length = codes.shape
    words, per_word = num_words(length, bits), 32 // bits
    padding = [(0, 0)] * len(lead) + [(0, words * per_word - length)]
    fields = jnp.pad(codes.astype(jnp.uint32), padding).reshape(*lead, words, per_word)
    # Fields do not overlap, so a sum is a bitwise or.
    return (fields << _shifts(bits)).sum(-1, dtype=jnp.uint32)


def unpack(packed: UInt32[Array, "*lead W"], bits: int, length: int) -> Int32[Array, "*lead n"]:
    """The first `length` codes of packed words: the inverse of `pack`."""
    fields = (packed[..., None] >> _shifts(bits)) & jnp.uint32(2**bits - 1)
    return fields.reshape(*packed.shape[:-1], -1)[..., :length].astype(jnp.int32)


def _shifts(bits: int) -> UInt32[Array, "P"]:
    if bits not in SUPPORTED_BITS:
        raise ValueError(f"bits must be one of {SUPPORTED_BITS}, got {bits}")
    return jnp.arange(0, 32, bits, dtype=jnp.uint32)
