"""Classes of tokens: tokens of a head, sorted by energy, with different bit widths.

Attention does not care about the order of cached positions. So a head may keep its tokens class by
class, each class with its own number of bits, and needs no index per token to read them. Positions
and *slots* are two orders of the same tokens: positions are those of the prompt; slots hold all
tokens of the first class, in the order of their positions, then those of the second, and so on.
A map of two bits per token leads from one order to the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Bool, Float, Int32, UInt32
from vkq_jax.bits import packing
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.slots import filled
from vkq_jax.validation import check_fields

__all__ = [
    "ClassMap",
    "TokenClass",
    "assign_classes",
    "capacities",
    "check_classes",
    "share_bounds",
]

MOST_CLASSES = 4
_MAP_BITS = 2
_PARTS = 1000  # shares are counted in thousandths: whole numbers are the same on every device


@dataclasses.dataclass(frozen=True)
class TokenClass:
    """A share of the tokens and the precision they get.

    Attributes:
        share: of the tokens of a head, a multiple of 0.001; the shares of all classes sum to 1.
        planes: bits per channel, on average. 0: only the centre of such a token is kept.

    Raises:
        ValueError: an attribute is not a number.
    """

    share: int | float
    planes: int | float

    def __post_init__(self):
        """Checks that both are numbers; `check_classes` checks their values."""
        check_fields(self)


def check_classes(classes: Sequence[TokenClass]) -> None:
    """Raises ValueError unless `classes` is a tuple of classes whose shares sum to 1."""
    if not isinstance(classes, tuple) or not all(isinstance(c, TokenClass) for c in classes):
        raise ValueError(f"classes must be a tuple of TokenClass, got {show(classes)}")
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"there can be 1 to {MOST_CLASSES} classes of tokens, got {len(classes)}")
    for c in classes:
        thousandths = c.share * _PARTS
        if not 0 < c.share <= 1 or abs(thousandths - round(thousandths)) > 1e-6:
            raise ValueError(f"share must be a multiple of 0.001 in (0, 1], got {show(c.share)}")
        if not 0 <= c.planes <= 8:
            raise ValueError(f"planes must lie in [0, 8], got {show(c.planes)}")
    if share_bounds(classes)[-1] != _PARTS:
        raise ValueError(f"shares must sum to 1, got {[c.share for c in classes]}")


def capacities(classes: Sequence[TokenClass], num_positions: int) -> tuple[int, ...]:
    """Slots of each class, enough for any number of tokens up to `num_positions`."""
    # A thousand more tokens never take fewer slots of a class.
    tokens = np.arange(max(0, num_positions - _PARTS), num_positions + 1)[:, None]
    stops = (tokens * np.asarray(share_bounds(classes)) + _PARTS // 2) // _PARTS
    return tuple(int(x) for x in np.diff(stops, axis=-1, prepend=0).max(0))


def assign_classes(
    energy: Float[Array, "*lead V"],
    valid: Bool[Array, "*lead V"],
    classes: Sequence[TokenClass],
) -> ClassMap:
    """Puts each token into a class: those of the greatest energy into the first one.

    A class gets its share of the valid tokens, whatever the padding. Positions that are not valid
    belong to no class.
    """
    energy = jnp.where(valid, energy, -jnp.inf)
    falling = jnp.argsort(-energy, axis=-1, stable=True)
    rank = jnp.argsort(falling, axis=-1, stable=True).astype(jnp.int32)
    count = valid.sum(-1, dtype=jnp.int32)[..., None, None]
    bounds = jnp.asarray(share_bounds(classes)[:-1], jnp.int32).reshape(*[1] * energy.ndim, -1)
    thousands, rest = count // _PARTS, count % _PARTS  # their product with bounds stays an int32
    stops = thousands * bounds + (rest * bounds + _PARTS // 2) // _PARTS
    number = (rank[..., None] >= stops).sum(-1, dtype=jnp.int32)
    return ClassMap.from_classes(jnp.where(valid, number, len(classes)), classes)


@frozen_pytree
class ClassMap:
    """Which class each token belongs to: the way from positions to slots and back.

    Attributes:
        words: class of each position, 2-bit fields, see `vkq_jax.bits.packing`.
        valid: 1-bit fields, which positions are tokens; None where something else says so.
        num_positions: V.
        capacities: slots of each class.

    Methods take `valid`, which positions are tokens; None: as the map itself says.
    """

    words: UInt32[Array, "*lead W"]
    valid: UInt32[Array, "*lead W1"] | None
    num_positions: int = static_field(kw_only=True)
    capacities: tuple[int, ...] = static_field(kw_only=True)

    def check(self) -> None:
        """Raises ValueError for words that do not hold V positions."""
        packing.check_words(self.words, _MAP_BITS, self.num_positions)
        if self.valid is not None:
            packing.check_words(self.valid, 1, self.num_positions)

    @classmethod
    def from_classes(
        cls, number: Int32[Array, "*lead V"], classes: Sequence[TokenClass]
    ) -> ClassMap:
        """The map of the class `number` of each position; len(classes) marks what is no token."""
        valid = number < len(classes)
        return cls(
            packing.pack(jnp.where(valid, number, 0).astype(jnp.uint32), _MAP_BITS),
            packing.pack(valid, 1),
            num_positions=number.shape[-1],
            capacities=capacities(classes, number.shape[-1]),
        )

    @property
    def num_slots(self) -> int:
        """Slots of all classes; a few more than positions, where shares have to be rounded."""
        return sum(self.capacities)

    def classes(self, valid: Bool[Array, "*lead V"] | None = None) -> Int32[Array, "*lead V"]:
        """The class of each position; the number of classes where there is no token."""
        number = packing.unpack(self.words, _MAP_BITS, self.num_positions)
        if self.valid is not None:
            valid = packing.unpack(self.valid, 1, self.num_positions) == 1
        return number if valid is None else jnp.where(valid, number, len(self.capacities))

    def positions_of_slots(
        self, valid: Bool[Array, "*lead V"] | None = None
    ) -> tuple[Int32[Array, "*lead S"], Bool[Array, "*lead S"]]:
        """The position that each slot holds, class by class, and which slots are taken."""
        number = self.classes(valid)
        # One word for class and position: a sort of numbers alone is cheaper than one of pairs.
        places = jax.lax.broadcasted_iota(jnp.int32, number.shape, number.ndim - 1)
        order = jnp.sort(number * self.num_positions + places, axis=-1, stable=False)
        classes = np.arange(len(self.capacities), dtype=np.int32)
        one_each = classes.reshape(*[1] * (number.ndim - 1), -1, 1)
        count = (number[..., None, :] == one_each).sum(-1, dtype=jnp.int32)
        start = jnp.cumsum(count, axis=-1) - count
        of_slot = np.repeat(classes, self.capacities)
        within = np.arange(self.num_slots) - np.asarray(self._offsets())[of_slot]
        within = within.astype(np.int32).reshape(*[1] * (number.ndim - 1), -1)
        taken = count[..., of_slot] > within
        place = jnp.where(taken, start[..., of_slot] + within, 0)
        found = jnp.take_along_axis(order, place, axis=-1, mode="promise_in_bounds")
        earlier = (self.num_positions * of_slot).astype(np.int32).reshape(within.shape)
        return jnp.where(taken, found - earlier, 0), taken

    def slots_of_positions(
        self, valid: Bool[Array, "*lead V"] | None = None
    ) -> Int32[Array, "*lead V"]:
        """The slot that holds each position; some slot where there is no token."""
        number = self.classes(valid)
        # One sum for all classes: on a GPU each takes several kernels.
        one_each = [1] * (number.ndim - 1) + [-1, 1]
        offset = jnp.asarray(self._offsets(), jnp.int32).reshape(one_each)
        numbers = jnp.arange(len(self.capacities), dtype=jnp.int32).reshape(one_each)
        ours = number[..., None, :] == numbers
        slot = offset + jnp.cumsum(ours, axis=-1, dtype=jnp.int32) - 1
        return jnp.where(ours, slot, 0).sum(-2, dtype=jnp.int32)

    def counts_below(
        self, position: Int32[Array, "*lead T"], valid: Bool[Array, "*lead V"] | None = None
    ) -> list[Int32[Array, "*lead T"]]:
        """How many tokens of each class lie in the first `position` positions."""
        number = self.classes(valid)[..., None, None, :]
        shape = (*position.shape, 1, self.num_positions)
        axis = len(shape) - 1
        before = jax.lax.broadcasted_iota(jnp.int32, shape, axis) < position[..., None, None]
        # One sum for all classes: on a GPU each takes a kernel.
        classes = jnp.arange(len(self.capacities), dtype=jnp.int32)
        ours = before & (number == classes.reshape(*[1] * (axis - 1), -1, 1))
        counts = ours.sum(-1, dtype=jnp.int32)
        return [counts[..., c] for c in range(len(self.capacities))]

    def slots_below(
        self, position: Int32[Array, "*lead T"], valid: Bool[Array, "*lead V"] | None = None
    ) -> Bool[Array, "*lead T S"]:
        """Which slots hold one of the first `position` positions."""
        counts = self.counts_below(position, valid)
        below = [filled(n, capacity) for n, capacity in zip(counts, self.capacities, strict=True)]
        return jnp.concatenate(below, axis=-1)

    def _offsets(self) -> list[int]:
        return [sum(self.capacities[:c]) for c in range(len(self.capacities))]


def share_bounds(classes: Sequence[TokenClass]) -> list[int]:
    """Where each class ends, in thousandths of the tokens."""
    return np.cumsum([round(c.share * _PARTS) for c in classes]).tolist()
