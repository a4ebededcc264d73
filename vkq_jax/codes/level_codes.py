"""Level codes: a group of elements shares a pair of levels, the ends of a uniform grid."""

from __future__ import annotations

import dataclasses
import enum
from typing import Literal

import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, UInt8, UInt32
from vkq_jax.bits import packing, rotation
from vkq_jax.codes import groups
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor, Quantizer
from vkq_jax.codes.range_rules import MinMax, RangeRule
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.validation import check_fields

__all__ = ["Granularity", "LevelCodes", "LevelTensor"]

_LARGEST_ROTATED = 2.0**100  # channels can be summed


class Granularity(enum.Enum):
    """Which elements share a pair of levels."""

    PER_CHANNEL = "per_channel"
    """Consecutive positions of one channel of one head."""
    PER_TOKEN = "per_token"
    """Consecutive channels of one position."""


@dataclasses.dataclass(frozen=True)
class LevelCodes(Quantizer):
    """Settings of codes on a uniform grid between two levels per group.

    Attributes:
        bits: width of a code, one of 1, 2, 4, 8, or 1.6 for three levels.
        range_rule: where the two levels come from, see `vkq_jax.codes.range_rules`.
        rotation: rotates the channels first, so that a vector's energy is spread evenly
            ("hadamard"), or leaves them (None).
        granularity: which elements form a group.
        group_size: elements of a group: positions (PER_CHANNEL; the last group may be shorter) or
            channels (PER_TOKEN; must divide head_dim). None: all of them.
        table_dtype: dtype in which the levels are stored: bfloat16, float16 or float32.

    Raises:
        ValueError: a setting is not one of the above, or range_rule is not a hashable callable.
    """

    bits: int | float = 1
    range_rule: RangeRule = MinMax()
    granularity: Granularity = Granularity.PER_CHANNEL
    group_size: int | None = None
    rotation: Literal["hadamard"] | None = None
    table_dtype: str = "bfloat16"

    def __post_init__(self):
        """Checks the settings."""
        rule = self.range_rule
        if not callable(rule) or isinstance(rule, type) or rule.__hash__ is None:
            raise ValueError(
                "range_rule must be a hashable callable, such as MinMax() or Quantile(0.1), got "
                f"{show(rule)}"
            )
        check_fields(self)
        packing.check_bits(self.bits)
        groups.check_group_size(self.group_size)
        groups.check_table_dtype(self.table_dtype)

    def quantize(self, x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"]) -> LevelTensor:
        """Codes `x`. Positions that are not valid get code 0 and enter no table.

        Raises:
            ValueError: group_size does not divide H (PER_TOKEN), or the range rule returns another
                shape than one level per group.
        """
        rotated = self.rotation is not None
        x, bad = groups.coded_input(x, valid, _LARGEST_ROTATED if rotated else groups.LARGEST)
        if rotated:  # each rotated channel has a part of every channel
            x, bad = rotation.rotate(x), jnp.broadcast_to(bad.any(-1, keepdims=True), bad.shape)
        num_positions, head_dim = x.shape[-2:]
        if self.granularity is Granularity.PER_CHANNEL:
            group_size = groups.resolve_group_size(self.group_size, num_positions)
            bad = groups.group_positions(bad, group_size).any(-2)
            lower, upper = self._levels(*groups.split_positions(x, valid, group_size), bad)

            def per_element(table):
                return groups.per_position(table, group_size, num_positions)
        else:
            group_size = min(self.group_size or head_dim, head_dim)
            if head_dim % group_size:
                raise ValueError(
                    f"group_size of PER_TOKEN must divide head_dim {head_dim}, got {group_size}"
                )
            runs = x.reshape(*x.shape[:-1], head_dim // group_size, group_size)
            bad = bad.reshape(runs.shape).any(-1)
            lower, upper = self._levels(
                runs, jnp.broadcast_to(valid[..., None, None], runs.shape), bad
            )

            def per_element(table):
                return jnp.repeat(table, group_size, axis=-1)

        # From the levels as they are stored, so that each element gets the nearest of its levels.
        step = _step(lower, upper, self.bits)
        # Large steps are taken in quarters: the reciprocal of one near 2^127 is 0 on most devices.
        unit = jnp.where(step > 1, 0.25, 1.0)
        code = (x - per_element(lower.astype(jnp.float32))) * per_element(unit)
        code = code / per_element(jnp.where(step == 0, 1.0, step * unit))
        code = jnp.clip(jnp.round(code), 0, packing.highest_code(self.bits))
        used = valid[..., None] & per_element((step != 0) & jnp.isfinite(step))
        return LevelTensor(
            packed=packing.pack(jnp.where(used, code, 0.0).astype(jnp.uint32), self.bits),
            lower=lower,
            upper=upper,
            bits=self.bits,
            head_dim=head_dim,
            group_size=group_size,
            granularity=self.granularity,
            rotated=rotated,
        )

    def _levels(
        self,
        x: Float[Array, "*groups E"],
        valid: Bool[Array, "*groups E"],
        bad: Bool[Array, "*groups"],
    ) -> tuple[Float[Array, "*groups"], Float[Array, "*groups"]]:
        """The stored levels: what the rule says, rounded.

        0 for a group without valid elements, NaN for a `bad` one.
        """
        ends = self.range_rule(x, valid, self.bits)
        if any(jnp.shape(end) != x.shape[:-1] for end in ends):
            raise ValueError(
                f"range_rule {show(self.range_rule)} must return levels of shape {x.shape[:-1]}, "
                f"got {[jnp.shape(end) for end in ends]}"
            )
        some = valid.any(-1)
        lower, upper = (
            groups.as_stored(jnp.where(bad, jnp.nan, jnp.where(some, end, 0.0)), self.table_dtype)
            for end in ends
        )
        return lower, upper


@frozen_pytree
class LevelTensor(QuantizedTensor):
    """A tensor whose elements lie on a uniform grid between the two levels of their group.

        x_hat = lower + scale * code,    scale = (upper - lower) / (levels - 1)

    for each channel x, or for each Hadamard-rotated one. Levels saturate at the greatest number of
    the table dtype and at 1.7e38, elements to be rotated at 2^100. A NaN or infinite element at a
    valid position makes both levels of its group NaN, and so all values of the group.

    Attributes:
        packed: codes as little-endian bit fields, see `vkq_jax.bits.packing`.
        lower, upper: the level of the least and of the greatest code, in the table dtype: per group
            of positions and channel (PER_CHANNEL), or per position and run of channels (PER_TOKEN).
        bits: width of a code.
        head_dim: H.
        group_size: positions (PER_CHANNEL) or channels (PER_TOKEN) that share a pair of levels.
        granularity: PER_CHANNEL or PER_TOKEN.
        rotated: whether the levels are those of the Hadamard-rotated channels.
    """

    packed: UInt32[Array, "*lead V W"] | UInt8[Array, "*lead V W"]
    lower: Float[Array, "*lead G H"] | Float[Array, "*lead V R"]
    upper: Float[Array, "*lead G H"] | Float[Array, "*lead V R"]
    bits: int | float = static_field(kw_only=True)
    head_dim: int = static_field(kw_only=True)
    group_size: int = static_field(kw_only=True)
    granularity: Granularity = static_field(kw_only=True)
    rotated: bool = static_field(default=False, kw_only=True)

    def check(self) -> None:
        """Raises ValueError for words that do not hold H codes."""
        packing.check_words(self.packed, self.bits, self.head_dim)

    def decoding(self) -> AffineTensor:
        """The general form: channel tables (PER_CHANNEL) or token tables (PER_TOKEN)."""
        offset, scale = self.lower.astype(jnp.float32), _step(self.lower, self.upper, self.bits)
        if self.granularity is Granularity.PER_CHANNEL:
            return AffineTensor(
                packed=self.packed,
                channel_offset=offset,
                channel_scale=scale,
                bits=self.bits,
                head_dim=self.head_dim,
                group_size=self.group_size,
                rotated=self.rotated,
            )
        return AffineTensor(
            packed=self.packed,
            token_offset=offset,
            token_scale=scale,
            bits=self.bits,
            head_dim=self.head_dim,
            group_size=self.packed.shape[-2],
            rotated=self.rotated,
        )


def _step(
    lower: Float[Array, "*table"], upper: Float[Array, "*table"], bits: int | float
) -> Float[Array, "*table"]:
    """Distance between the values of neighbouring codes, float32."""
    return (upper.astype(jnp.float32) - lower.astype(jnp.float32)) / packing.highest_code(bits)
