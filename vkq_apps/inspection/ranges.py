"""Where the channels of keys and values lie, and where the levels of their codes."""

import jax.numpy as jnp

from vkq_jax.array_types import Array, Float
from vkq_jax.bits import packing, rotation
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.mixed_codes import MixedTensor
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor
from vkq_jax.pytree import frozen_pytree

__all__ = ["FRACTIONS", "ChannelRanges", "channel_ranges"]

FRACTIONS = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Quantiles over the visual tokens that describe one channel."""


@frozen_pytree
class ChannelRanges:
    """Quantiles of each channel over the V positions of a tensor, and its levels; float32.

    Attributes:
        quantiles: of the channels as they are, at `FRACTIONS` (F of them).
        coded_quantiles: of the channels that the codes describe: rotated ones where the codes
            describe rotated channels, else None.
        lowest, highest: what the least and the greatest code stand for, in the channels that the
            codes describe, median over the positions (levels may differ by group of positions and
            by token); the least and the greatest decoded value where channels have no levels of
            their own (dictionary codes); None for a tensor without codes.
    """

    quantiles: Float[Array, "F *lead H"]
    coded_quantiles: Float[Array, "F *lead H"] | None
    lowest: Float[Array, "*lead H"] | None
    highest: Float[Array, "*lead H"] | None


def channel_ranges(
    x: Float[Array, "*lead V H"], x_hat: Float[Array, "*lead V H"], coded: QuantizedTensor
) -> ChannelRanges:
    """Ranges of `x`, and the levels of `coded`, which is `x` in codes and decodes to `x_hat`."""
    x = x.astype(jnp.float32)
    quantiles = _quantiles(x)
    if isinstance(coded, DenseTensor):
        return ChannelRanges(quantiles, None, None, None)
    if isinstance(coded.plain(), DictionaryTensor | MixedTensor):
        return ChannelRanges(quantiles, None, x_hat.min(-2), x_hat.max(-2))
    lowest, highest = _levels(coded)
    rotated = _quantiles(rotation.rotate(x)) if coded.decoding().rotated else None
    return ChannelRanges(quantiles, rotated, lowest, highest)


def _quantiles(x: Float[Array, "*lead V H"]) -> Float[Array, "F *lead H"]:
    return jnp.quantile(x, jnp.asarray(FRACTIONS, jnp.float32), axis=-2)


def _levels(coded: QuantizedTensor) -> tuple[Float[Array, "*lead H"], Float[Array, "*lead H"]]:
    """Levels of the extreme codes, by decoding tokens of nothing else."""
    codes = coded.decoding()

    def decode(code: int) -> Array:
        words = packing.pack(jnp.full(codes.head_dim, code, jnp.uint32), codes.bits)
        same = AffineTensor(
            jnp.broadcast_to(words, codes.packed.shape),
            codes.channel_offset,
            codes.channel_scale,
            codes.token_offset,
            codes.token_scale,
            bits=codes.bits,
            head_dim=codes.head_dim,
            group_size=codes.group_size,
        )
        return jnp.median(same.dequantize(), axis=-2)

    return decode(0), decode(packing.highest_code(codes.bits))
