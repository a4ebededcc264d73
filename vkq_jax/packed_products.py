"""Products of float32 rows with packed codes: straight from the words, or with unpacked codes.

A matrix product wants its operands in memory, where unpacked codes have 16 or 32 times the bytes of
the words. On a GPU that is what attention over a coded cache would wait for. There a sum is taken
bit by bit, of the words in registers:

    sum_p y[p] s[p],    s[p] in {-1, 1}:    each y[p] with its sign flipped where bit p is 0

which XLA makes one kernel of: nothing of the cache's length is unpacked. For the sum over positions
the words of 32 positions are transposed first, to words of 32 positions of one bit. Codes of b bits
are b such sums. On other devices, and for wide codes, the codes are unpacked (on a GPU to bfloat16,
which holds them exactly, and the rows are split into what bfloat16 holds of them and what it
leaves).
"""

import jax
import jax.numpy as jnp

from vkq_jax import packing
from vkq_jax.array_types import Array, Float, UInt8, UInt32
from vkq_jax.exact_einsum import split_einsum

__all__ = ["products", "sign_products", "sign_sums", "sums"]

_STRAIGHT_BITS = (1, 2)  # of a code; more cost more bit by bit than unpacked
_WORDS = 4  # of 32 positions, whose sum one thread takes
_SIGN = 0x80000000


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
        bits: of a code, see `vkq_jax.packing`.
        straight: from the words; None: where that is faster.
    """
    runs, size = rows.shape[-2:]
    if not _is_straight(bits, runs, size, straight):
        codes = _unpacked(packed, bits, runs, size)
        return split_einsum("...qgrh,...gsrh->...qgsr", rows, codes)
    words = packed.reshape(*packed.shape[:-1], runs, -1)[..., None, :, :, :, :]
    spread = _of_bits(rows, int(bits), words.shape[-1])[..., None, :, :]
    found = _signed_sum(spread, words)
    return 0.5 * (found + spread.sum(-1))


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
    if not _is_straight(bits, runs, size, straight):
        codes = _unpacked(packed, bits, runs, size)
        return split_einsum("...qgsr,...gsrh->...qgrh", weights, codes)
    words = packed.reshape(*packed.shape[:-1], runs, -1)  # [*lead, G, E, R, W]
    words = jnp.swapaxes(words, -3, -2)[..., None, :, :, :, :]  # one for all queries
    weights = jnp.swapaxes(weights, -1, -2)
    found = _sums_of_bits(weights, words)
    found = 0.5 * (found + weights.sum(-1, keepdims=True))
    fields = found.reshape(*found.shape[:-1], -1, int(bits))
    return (fields * _powers(int(bits), fields.ndim)).sum(-1)[..., :size]


def sign_products(
    rows: Float[Array, "*lead Q n"],
    packed: UInt32[Array, "*lead V W"],
    straight: bool | None = None,
) -> Float[Array, "*lead Q V"]:
    """Sums over channels of number times sign; bits of 1 stand for 1, of 0 for -1."""
    if not _is_straight(1, 1, rows.shape[-1], straight):
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
    if not _is_straight(1, 1, size, straight):
        return split_einsum("...qv,...vn->...qn", weights, _signs(packed, size))
    return _sums_of_bits(weights, packed[..., None, :, :])[..., :size]


def _is_straight(bits: int | float, runs: int, size: int, asked: bool | None) -> bool:
    """Whether to sum bit by bit; codes of a run have to be whole words then."""
    possible = bits in _STRAIGHT_BITS and (runs == 1 or size * bits % 32 == 0)
    if asked is None:
        return possible and jax.default_backend() == "gpu"
    if asked and not possible:
        raise ValueError(
            f"codes of {bits} bits in {runs} runs of {size} have no words of their own"
        )
    return asked


def _unpacked(packed: packing.Words, bits: int | float, runs: int, size: int) -> Array:
    codes = packing.unpack(packed, bits, runs * size)
    return codes.reshape(*codes.shape[:-1], runs, size)


def _signs(packed: UInt32[Array, "*lead V W"], size: int) -> Array:
    return 2 * packing.unpack(packed, 1, size) - 1


def _powers(bits: int, ndim: int) -> Float[Array, "..."]:
    """1, 2, 4, ..., on the last of `ndim` axes."""
    return 2.0 ** jnp.arange(bits, dtype=jnp.float32).reshape(*[1] * (ndim - 1), -1)


def _of_bits(rows: Float[Array, "*lead n"], bits: int, words: int) -> Float[Array, "*lead p"]:
    """What each bit of the words is worth: the number times 1, 2, ...; 0 for bits of no code."""
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
        flipped = ~words[..., w]
        for b in range(32):
            sign = (flipped << jnp.uint32(31 - b)) & jnp.uint32(_SIGN)
            number = jax.lax.bitcast_convert_type(numbers[..., 32 * w + b], jnp.uint32)
            total = total + jax.lax.bitcast_convert_type(number ^ sign, jnp.float32)
    return total


def _sums_of_bits(
    weights: Float[Array, "*s V"], packed: UInt32[Array, "*#s V W"]
) -> Float[Array, "*s p"]:
    """Sums over positions of weight times sign, for each bit of the words."""
    positions = weights.shape[-1]
    words = max(1, min(_WORDS, -(-positions // 32)))
    padding = -positions % (32 * words)
    chunks = (positions + padding) // (32 * words)
    weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, padding)])
    packed = jnp.pad(packed, [(0, 0)] * (packed.ndim - 2) + [(0, padding), (0, 0)])
    turned = _transposed(packed)  # [*#s, V / 32, p]
    turned = turned.reshape(*turned.shape[:-2], chunks, words, turned.shape[-1])
    turned = jnp.swapaxes(turned, -1, -2)
    parts = weights.reshape(*weights.shape[:-1], chunks, 1, 32 * words)
    return _signed_sum(parts, turned).sum(-2)


def _transposed(packed: UInt32[Array, "*lead V W"]) -> UInt32[Array, "*lead v p"]:
    """For each bit of the words, words of 32 positions."""
    *lead, positions, words = packed.shape
    rows = packed.reshape(*lead, positions // 32, 32, words)
    places = jnp.arange(32, dtype=jnp.uint32).reshape(*[1] * (rows.ndim - 1), 32)
    turned = jnp.zeros((*lead, positions // 32, words, 32), jnp.uint32)
    for b in range(32):
        turned = turned | (rows[..., b, :, None] >> places & jnp.uint32(1)) << jnp.uint32(b)
    # Words that are read once for each query: not to be made anew each time.
    return jax.lax.optimization_barrier(turned.reshape(*lead, positions // 32, words * 32))
