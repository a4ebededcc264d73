"""Mixed codes: channels of wide range in other level codes than the rest."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Shaped
from vkq_jax.codes import groups
from vkq_jax.codes.code_tables import SideTables
from vkq_jax.codes.level_codes import LevelCodes, LevelTensor
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor, Quantizer
from vkq_jax.pytree import frozen_pytree
from vkq_jax.validation import check_fields

__all__ = ["MixedCodes", "MixedTensor"]


@dataclasses.dataclass(frozen=True)
class MixedCodes(Quantizer):
    """Settings of codes with more bits for channels of wide range (VidKV, arXiv 2503.16257).

    Attributes:
        wide: codes of the channels whose elements span the widest range in a head.
        narrow: codes of the others.
        share: part of the channels that are wide, in (0, 1); at least one channel is of each kind.

    Raises:
        ValueError: an attribute is of another type, or share is out of range.
    """

    wide: LevelCodes
    narrow: LevelCodes
    share: float = 0.5

    def __post_init__(self):
        """Checks the settings."""
        check_fields(self)
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), got {self.share}")

    def quantize(self, x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"]) -> MixedTensor:
        """Codes `x`. Positions that are not valid get code 0 and enter no table.

        Raises:
            ValueError: there is only one channel, or more than 65,536.
        """
        head_dim = x.shape[-1]
        if not 2 <= head_dim <= 2**16:
            raise ValueError(f"mixed codes need 2 to 65536 channels, got {head_dim}")
        wide = min(max(round(self.share * head_dim), 1), head_dim - 1)
        finite, _ = groups.coded_input(x, valid, groups.LARGEST / 2)
        taken = valid[..., None]
        low = jnp.min(finite, axis=-2, where=taken, initial=groups.LARGEST)
        high = jnp.max(finite, axis=-2, where=taken, initial=-groups.LARGEST)
        channel = jnp.argsort(low - high, axis=-1, stable=True)
        ordered = jnp.take_along_axis(x, channel[..., None, :], axis=-1)
        return MixedTensor(
            wide=self.wide.quantize(ordered[..., :wide], valid),
            narrow=self.narrow.quantize(ordered[..., wide:], valid),
            channel=channel.astype(jnp.uint8 if head_dim <= 256 else jnp.uint16),
        )


@frozen_pytree
class MixedTensor(QuantizedTensor):
    """A tensor in two parts, each with its own channels; for attention a sum of two products.

    Attributes:
        wide, narrow: the parts.
        channel: number in x of each channel of the parts, the wide ones first.
    """

    wide: LevelTensor
    narrow: LevelTensor
    channel: Shaped[Array, "*lead H"]

    def check(self) -> None:
        """Raises ValueError where `channel` does not name every channel once."""
        head_dim = self.wide.head_dim + self.narrow.head_dim
        every = jax.lax.broadcasted_iota(jnp.int32, self.channel.shape, self.channel.ndim - 1)
        if self.channel.shape[-1] != head_dim or (jnp.sort(self._order, -1) != every).any():
            raise ValueError(f"channel must name each of {head_dim} channels once")

    def decoding(self) -> AffineTensor:
        """Raises NotImplementedError: the parts have codes of different widths."""
        raise NotImplementedError(
            "MixedTensor has two parts of codes; use `wide` and `narrow`, or `dequantize()`"
        )

    @property
    def packed(self) -> tuple[Any, Any]:
        """The words of both parts; of an abstract tensor their shapes."""
        return self.wide.packed, self.narrow.packed

    def dequantize(self) -> Float[Array, "*lead V H"]:
        """The float32 values that the codes stand for."""
        return self.join(self.wide.dequantize(), self.narrow.dequantize())

    def scores(
        self, query: Float[Array, "*lead Q H"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q V"]:
        """See `QuantizedTensor.scores`."""
        wide, narrow = self.split(query)
        return self.wide.scores(wide) + self.narrow.scores(narrow)

    def weighted_sum(
        self, weights: Float[Array, "*lead Q V"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q H"]:
        """See `QuantizedTensor.weighted_sum`."""
        return self.join(self.wide.weighted_sum(weights), self.narrow.weighted_sum(weights))

    def split(self, x: Float[Array, "*lead Q H"]) -> tuple[Array, Array]:
        """The channels of the wide part and those of the narrow one."""
        ordered = jnp.take_along_axis(x, self._order[..., None, :], axis=-1)
        return ordered[..., : self.wide.head_dim], ordered[..., self.wide.head_dim :]

    def join(self, wide: Float[Array, "*lead Q A"], narrow: Float[Array, "*lead Q C"]) -> Array:
        """Channels of both parts, in the order of `x`."""
        place = jnp.argsort(self._order, axis=-1)
        both = jnp.concatenate([wide, narrow], axis=-1)
        return jnp.take_along_axis(both, place[..., None, :], axis=-1)

    @property
    def _order(self) -> Shaped[Array, "*lead H"]:
        return self.channel.astype(jnp.int32)
