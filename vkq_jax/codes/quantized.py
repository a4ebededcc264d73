"""The parts that all quantizers share: settings, stored tensor and the decoding contract."""

from __future__ import annotations

import abc
import math

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Shaped, UInt8, UInt32
from vkq_jax.bits import packed_products, packing, rotation
from vkq_jax.bits.exact_einsum import exact_einsum
from vkq_jax.codes import groups
from vkq_jax.codes.code_tables import SideTables
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

    `decoding()` states what the words mean, and everything else follows from it: `dequantize`, and
    the products `scores` and `weighted_sum` that attention is made of. A tensor whose levels are
    not affine in one code raises a NotImplementedError there and defines these three itself.

    A tensor that is read from a file is checked against the annotations of its fields and against
    what its quantizer makes (see `vkq_jax.files.consistency`); a method `check(self)`, where there
    is one, raises a ValueError for values that cannot be.
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

    def scores(
        self, query: Float[Array, "*lead Q H"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q V"]:
        """query . x_hat[t] for every position t, less the score bias of coded keys; float32.

        Dictionary codes have slots in place of positions, see `vkq_jax.codes.token_classes`.

        Args:
            query: float32, already times `logits_scale`.
            tables: offline tables that the tensor was coded with, if its codes need any.
        """
        return self.decoding().scores(query, tables)

    def weighted_sum(
        self, weights: Float[Array, "*lead Q V"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q H"]:
        """sum_t weights[t] * x_hat[t], float32: the value side of attention.

        Args:
            weights: float32, exactly 0 at padded positions; slots as in `scores`.
            tables: as for `scores`.
        """
        return self.decoding().weighted_sum(weights, tables)

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
    2502.14882v2, 2.3). Both products follow the equation term by term, in float32: folding large
    key scales into a half-precision query overflows.

    Attributes:
        packed: codes as little-endian bit fields, see `vkq_jax.bits.packing`.
        channel_offset, channel_scale: per group of positions and channel.
        token_offset, token_scale: per position and run of channels.
        score_error: mean squared error per channel of each position (a key's |x_hat - x|^2 / H),
            already times the strength with which it is to be taken off the position's score
            (`SignCodes.beta`); absent when the codes do not correct scores.
        bits: width of a code, see `vkq_jax.bits.packing`.
        head_dim: H.
        group_size: positions that share a channel table.
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

    def scores(
        self, query: Float[Array, "*lead Q H"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q V"]:
        """See `QuantizedTensor.scores`."""
        if not self.num_positions:  # nothing to divide into groups
            return jnp.zeros((*query.shape[:-1], 0), jnp.float32)
        square = jnp.sum(query * query, -1, keepdims=True)  # rotation leaves it alone
        if self.rotated:
            query = rotation.rotate(query)

        runs = 1 if self.token_scale is None else self.token_scale.shape[-1]
        folded = query[..., :, None, :]  # [*lead, Q, G, H]: before the product with the bits
        if self.channel_scale is not None:
            folded = folded * self.channel_scale[..., None, :, :]
        folded = folded.reshape(*folded.shape[:-1], runs, -1)
        grouped = groups.group_positions(self.packed, self._scale_group_size)
        product = packed_products.products(folded, grouped, self.bits)
        product = product.reshape(*query.shape[:-1], -1, runs)[..., : self.num_positions, :]

        if self.token_scale is not None:  # per token, after the product
            product = product * self.token_scale[..., None, :, :]
        total = product.sum(-1)
        if self.token_offset is not None:
            query_runs = query.reshape(*query.shape[:-1], self.token_offset.shape[-1], -1).sum(-1)
            total = total + exact_einsum("...qr,...vr->...qv", query_runs, self.token_offset)
        if self.channel_offset is not None:  # one dot product per group
            offset = exact_einsum("...qh,...gh->...qg", query, self.channel_offset)
            offset = groups.per_position(offset[..., None], self.group_size, self.num_positions)
            total = total + offset[..., 0]
        if self.score_error is not None:
            total = total - square * self.score_error[..., None, :]
        return total

    def weighted_sum(
        self, weights: Float[Array, "*lead Q V"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q H"]:
        """See `QuantizedTensor.weighted_sum`."""
        if not self.num_positions:
            return jnp.zeros((*weights.shape[:-1], self.head_dim), jnp.float32)
        group_size = self._scale_group_size

        scaled = weights[..., None]  # [*lead, Q, V, R]: the token scale is folded into the weights
        if self.token_scale is not None:
            scaled = scaled * self.token_scale[..., None, :, :]
        runs = scaled.shape[-1]
        scaled = groups.group_positions(scaled, group_size)  # [*lead, Q, G, s, R]
        grouped = groups.group_positions(self.packed, group_size)
        product = packed_products.sums(scaled, grouped, self.bits, self.head_dim // runs)
        product = product.reshape(*product.shape[:-2], self.head_dim)

        if self.channel_scale is not None:  # per group, after the sum over its tokens
            product = product * self.channel_scale[..., None, :, :]
        total = product.sum(-2)
        if self.channel_offset is not None:
            mass = groups.group_positions(weights[..., None], self.group_size)[..., 0]
            mass = mass.sum(-1)  # [*lead, Q, G]
            total = total + exact_einsum("...qg,...gh->...qh", mass, self.channel_offset)
        if self.token_offset is not None:
            offset = exact_einsum("...qv,...vr->...qr", weights, self.token_offset)
            total = total + jnp.repeat(offset, self.head_dim // offset.shape[-1], axis=-1)
        return rotation.unrotate(total) if self.rotated else total

    @property
    def _scale_group_size(self) -> int:
        """Positions over which one product with the bits runs: those that share a channel scale."""
        return self.num_positions if self.channel_scale is None else self.group_size

    def _per_element(self, table: Float[Array, "*lead A C"]) -> Float[Array, "*lead V H"]:
        rows, columns = table.shape[-2:]
        if rows != self.num_positions:  # a table per group of positions
            table = groups.per_position(table, self.group_size, self.num_positions)
        return jnp.repeat(table.astype(jnp.float32), self.head_dim // columns, axis=-1)
