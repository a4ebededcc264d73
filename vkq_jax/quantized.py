"""The parts that all quantizers share: settings, stored tensor and the decoding contract."""

from __future__ import annotations

import abc
import math

import jax
import jax.numpy as jnp

from vkq_jax import groups, packing, rotation
from vkq_jax.array_types import Array, Bool, Float, Shaped, UInt8, UInt32
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["AffineTensor", "QuantizedTensor", "Quantizer"]


class Quantizer(abc.ABC):
    """Settings of one way to code a tensor: a frozen, hashable dataclass of plain Python values.

    A new quantizer is a subclass with one method. It may return any `QuantizedTensor`; the general
    `AffineTensor` is enough for everything whose levels are affine in the code.
    """

    @abc.abstractmethod
    def quantize(
        self, x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"]
    ) -> QuantizedTensor:
        """Codes `x`; positions where `valid` is False are padding and must not touch any table."""


class QuantizedTensor(abc.ABC):
    """A coded tensor of logical shape `[*lead, V, H]`: a frozen pytree of packed words and tables.

    `decoding()` states what the words mean. Attention and `dequantize` use nothing else, so that a
    quantizer whose tensors define it works everywhere. A tensor that is read from a file is checked
    against the annotations of its fields and against what its quantizer makes (see
    `vkq_jax.consistency`); a method `check(self)`, where there is one, raises a ValueError for
    values that cannot be.
    """

    @abc.abstractmethod
    def decoding(self) -> AffineTensor:
        """The same tensor in the general form, its tables widened to float32."""

    def plain(self) -> QuantizedTensor:
        """The tensor as its quantizer makes it: itself, unless it is in the layout of a kernel."""
        return self

    def dequantize(self) -> Float[Array, "*lead V H"]:
        """The float32 values that the codes stand for."""
        return self.decoding().dequantize()

    def num_elements(self) -> int:
        """Elements of the logical shape."""
        return math.prod(jax.eval_shape(lambda t: t.dequantize(), self).shape)


@frozen_pytree
class AffineTensor(QuantizedTensor):
    """The decoding contract: levels affine in the code, up to a rotation of the channels.

        R x_hat[t, i] = channel_offset[g(t), i] + token_offset[t, r(i)]
                      + channel_scale[g(t), i] * token_scale[t, r(i)] * code[t, i]

    with g(t) = t // group_size the group of position t, r(i) = i // (H / R) the run of channel i,
    and R the orthonormal Hadamard matrix (`rotated=True`) or the identity. An absent scale is 1,
    an absent offset 0. For attention this splits into what multiplies *before* the product with
    the bits (`channel_scale`, folded into the query), what multiplies *after* it or is added per
    token (`token_scale`, `token_offset`), and what costs one dot product per group
    (`channel_offset`): no dequantized tensor is needed (post-scaling, CalibQuant, arXiv
    2502.14882v2).

    Attributes:
        packed: codes as little-endian bit fields, see `vkq_jax.packing`.
        channel_offset, channel_scale: per group of positions and channel.
        token_offset, token_scale: per position and run of channels.
        score_error: mean squared error per channel of each position (a key's |x_hat - x|^2 / H),
            already times the strength with which it is to be taken off the position's score
            (`SignCodes.beta`); absent when the codes do not correct scores.
        bits: width of a code, see `vkq_jax.packing`. head_dim: H. group_size: positions that share
            a channel table.
        rotated: whether the codes describe Hadamard-rotated channels.
    """

    packed: UInt32[Array, "*lead V W"] | UInt8[Array, "*lead V W"]
    channel_offset: Float[Array, "*lead G H"] | None = None
    channel_scale: Float[Array, "*lead G H"] | None = None
    token_offset: Float[Array, "*lead V R"] | None = None
    token_scale: Float[Array, "*lead V R"] | None = None
    score_error: Float[Array, "*lead V"] | None = None
    bits: int | float = static_field(kw_only=True)
    head_dim: int = static_field(kw_only=True)
    group_size: int = static_field(kw_only=True)
    rotated: bool = static_field(default=False, kw_only=True)

    @property
    def num_positions(self) -> int:
        """V, padding included."""
        return self.packed.shape[-2]

    def check(self) -> None:
        """Raises ValueError where the words are none of H codes."""
        packing.check_words(self.packed, self.bits, self.head_dim)

    def decoding(self) -> AffineTensor:
        """Itself: this is the general form."""
        return self

    def codes(self) -> Shaped[Array, "*lead V H"]:
        """The integer codes, int32."""
        return packing.unpack(self.packed, self.bits, self.head_dim)

    def dequantize(self) -> Float[Array, "*lead V H"]:
        """Float32 values, computed as the equation above reads."""
        x = self.codes().astype(jnp.float32)
        for table in (self.channel_scale, self.token_scale):
            if table is not None:
                x = x * self._per_element(table)
        for table in (self.channel_offset, self.token_offset):
            if table is not None:
                x = x + self._per_element(table)
        return rotation.unrotate(x) if self.rotated else x

    def _per_element(self, table: Float[Array, "*lead A C"]) -> Float[Array, "*lead V H"]:
        rows, columns = table.shape[-2:]
        if rows != self.num_positions:  # a table per group of positions
            table = groups.per_position(table, self.group_size, self.num_positions)
        return jnp.repeat(table.astype(jnp.float32), self.head_dim // columns, axis=-1)
