"""A layer's turn in a pass: the pass's input of the layer, and the type of its result."""

from __future__ import annotations

import dataclasses

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.passes.joined_codes import Coded

__all__ = ["LayerStep", "Made"]

type Made = tuple[Int32[Array, "B"], Coded | None]
"""Calibrations of scores that were left out, and the layer's codes, if it has any."""


@dataclasses.dataclass(frozen=True)
class LayerStep:
    """A layer's turn in a pass.

    Attributes:
        layer: its number, traced or not.
        number: that of a layer that is not traced.
        key, value: of the new tokens, or of the prompt's pictures, which may have none.
        own: whether the layer is one of the pass, which another leaves as it is; None: it is.
    """

    layer: Int32[Array, ""] | int
    number: int | None
    key: Float[Array, "B T K H"] | None
    value: Float[Array, "B T K H"] | None
    own: Bool[Array, ""] | None = None

    @property
    def tokens(self) -> tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Keys and values of a layer that has new tokens."""
        assert self.key is not None
        assert self.value is not None
        return self.key, self.value
