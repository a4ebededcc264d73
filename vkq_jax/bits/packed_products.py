"""Products of float32 rows with packed codes: straight from the words, or with unpacked codes.

A matrix product wants its operands in memory, where unpacked codes have 16 or 32 times the bytes of
the words. On a GPU that is what attention over a coded cache would wait for. There a sum is taken
bit by bit, of words in registers:

    sum_p y[p] s[p],    s[p] in {-1, 1}, the float of bit p

which XLA makes one kernel of: nothing of the cache's length is unpacked. Sums over channels are
unrolled, sums over positions are a reduction. Codes of 2 bits are two such sums over channels. On
other devices, and for wide codes, the codes are unpacked (on a GPU to bfloat16, which holds them
exactly, see `split_einsum`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, UInt8, UInt32
from vkq_jax.bits import packing
from vkq_jax.bits.exact_einsum import on_gpu, split_einsum

__all__ = ["products", "sign_products", "sign_sums", "sums"]

# Bits of a code of which the sums over channels, or over positions, are straight: more cost more
# bit by bit than unpacked.
_CHANNEL_BITS, _POSITION_BITS = (1, 2), (1,)
_MOST_SUMS = 16  # of queries in one kernel
_SIGN, _ONE = 0x80000000, 0x3F800000  # bits of a float: its sign; of 1.0


def products(
    rows: Float[Array, "*lead Q G R n"],
    packed: UInt32[Array, "*lead G E W"] | UInt8[Array, "*lead G E W"],
    bits: int | float,
    straight: bool | None = None,
) -> Float[Array, "*lead Q G E R"]:
    """Sums over channels of number times code, for every position.

    Args:
        rows: of each group of positions, in R runs of n channels.
        packed: words of codes, E positions of each group.
        bits: of a code, see `vkq_jax.bits.packing`.
        straight: from the words; None: where that is faster.
    """
    runs, size = rows.shape[-2:]
    if not _is_straight(bits, _CHANNEL_BITS, runs, size, straight):
        codes = _unpacked(packed, bits, runs, size)
        return split_einsum("...qgrh,...gsrh->...qgsr", rows, codes)
    words = packed.reshape(*packed.shape[:-1], runs, -1)[..., None, :, :, :, :]
    spread = _of_bits(rows, int(bits), words.shape[-1])[..., None, :, :]
    return 0.5 * (_signed_sum(spread, words) + spread.sum(-1))


def sums(
    weights: Float[Array, "*lead Q G E R"],
    packed: UInt32[Array, "*lead G E W"] | UInt8[Array, "*lead G E W"],
    bits: int | float,
    size: int,
    straight: bool | None = None,
) -> Float[Array, "*lead Q G R n"]:
    """Sums over the positions of each group of weight times code, n = `size` channels of each run.

    Arguments: see `products`.
    """
    runs = weights.shape[-1]
    if not _is_straight(bits, _POSITION_BITS, runs, size, straight):
        codes = _unpacked(packed, bits, runs, size)
        return split_einsum("...qgsr,...gsrh->...qgrh", weights, codes)
    signs = _floats(packed).reshape(*packed.shape[:-1], runs, -1)[..., None, :, :, :, :]
    summed = _of_each_query(weights, -4, lambda x: (x[..., None] * signs).sum(-3)[..., :size])
    return 0.5 * (summed + weights.sum(-2)[..., None])


def sign_products(
    rows: Float[Array, "*lead Q n"],
    packed: UInt32[Array, "*lead V W"],
    straight: bool | None = None,
) -> Float[Array, "*lead Q V"]:
    """Sums over channels of number times sign; bits of 1 stand for 1, of 0 for -1."""
    if not _is_straight(1, _CHANNEL_BITS, 1, rows.shape[-1], straight):
        return split_einsum("...qn,...vn->...qv", rows, _signs(packed, rows.shape[-1]))
    spread = _of_bits(rows, 1, packed.shape[-1])[..., None, :]
    return _signed_sum(spread, packed[..., None, :, :])


def sign_sums(
    weights: Float[Array, "*lead Q V"],
    packed: UInt32[Array, "*lead V W"],
    size: int,
    straight: bool | None = None,
) -> Float[Array, "*lead Q n"]:
    """Sums over positions of weight times sign, n = `size`."""
    if not _is_straight(1, _POSITION_BITS, 1, size, straight):
        return split_einsum("...qv,...vn->...qn", weights, _signs(packed, size))
    signs = _floats(packed)[..., None, :, :]
    return _of_each_query(weights, -2, lambda x: (x[..., None] * signs).sum(-2)[..., :size])


def _is_straight(
    bits: int | float, possible_bits: tuple[int, ...], runs: int, size: int, asked: bool | None
) -> bool:
    """Whether to sum bit by bit; codes of a run have to be whole words then."""
    possible = bits in possible_bits and (runs == 1 or size * bits % 32 == 0)
    if asked is None:
        return possible and on_gpu()
    if asked and not possible:
        raise ValueError(
            f"codes of {bits} bits in {runs} runs of {size} have no words of their own"
        )
    return asked


def _of_each_query(weights: Array, axis: int, total: Callable[[Array], Array]) -> Array:
    """`total(weights)`, of few queries in sums of their own.

    XLA makes one kernel of these, which takes a word's bits out once for all queries: on an H200
    73 us instead of 119 for four.
    """
    # A kernel of its own: what makes the weights is not to be repeated for each channel.
    weights = jax.lax.optimization_barrier(weights)
    if weights.shape[axis] > _MOST_SUMS:
        return total(weights)
    queries = jnp.split(weights, max(1, weights.shape[axis]), axis)
    return jnp.concatenate([total(x) for x in queries], axis)


def _unpacked(packed: packing.Words, bits: int | float, runs: int, size: int) -> Array:
    codes = packing.unpack(packed, bits, runs * size)
    return codes.reshape(*codes.shape[:-1], runs, size)


def _signs(packed: UInt32[Array, "*lead V W"], size: int) -> Array:
    return 2 * packing.unpack(packed, 1, size) - 1


def _powers(bits: int, ndim: int) -> Float[Array, "..."]:
    """1, 2, 4, ..., on the last of `ndim` axes."""
    return 2.0 ** jnp.arange(bits, dtype=jnp.float32).reshape(*[1] * (ndim - 1), -1)


def _of_bits(rows: Float[Array, "*lead n"], bits: int, words: int) -> Float[Array, "*lead p"]:
    """The worth of each bit of the words: the number times 1, 2, ...; 0 for bits of no code."""
    spread = rows
    if bits > 1:
        spread = rows[..., None] * _powers(bits, rows.ndim + 1)
        spread = spread.reshape(*rows.shape[:-1], -1)
    return jnp.pad(spread, [(0, 0)] * (rows.ndim - 1) + [(0, 32 * words - spread.shape[-1])])


def _signed_sum(
    numbers: Float[Array, "*#s p"], words: UInt32[Array, "*#s w"]
) -> Float[Array, "..."]:
    """Sum of numbers, those of bits 0 times -1; element by element, so that it is one kernel."""
    shape = jnp.broadcast_shapes(numbers.shape[:-1], words.shape[:-1])
    total = jnp.zeros(shape, jnp.float32)
    for w in range(words.shape[-1]):
        for b in range(32):
            total = total + numbers[..., 32 * w + b] * _float_of_bit(words[..., w], b)
    # A kernel of its own: the softmax would take the sum anew for each of its passes.
    return jax.lax.optimization_barrier(total)


def _float_of_bit(words: UInt32[Array, "*s"], bit: int | UInt32[Array, "..."]) -> Array:
    """1.0 where the bit is 1, else -1.0."""
    sign = (~words << (31 - jnp.uint32(bit))) & jnp.uint32(_SIGN)
    return jax.lax.bitcast_convert_type(sign | jnp.uint32(_ONE), jnp.float32)


def _floats(packed: UInt32[Array, "*lead W"]) -> Float[Array, "*lead p"]:
    """All bits as 1.0 and -1.0."""
    places = jnp.arange(32, dtype=jnp.uint32).reshape(*[1] * packed.ndim, 32)
    *lead, words = packed.shape
    return _float_of_bit(packed[..., None], places).reshape(*lead, 32 * words)
