"""States of layers that keep a state of fixed size instead of keys and values."""

from __future__ import annotations

import dataclasses

import jax

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.cache.head_groups import place_in
from vkq_jax.pytree import frozen_pytree, static_field, take_layer
from vkq_jax.settings.layer_groups import Cells

__all__ = ["RecurrentState"]


@frozen_pytree
class RecurrentState:
    """The state of linear attention, a convolution or the like after all tokens so far.

    Attributes:
        values: any number of arrays, stacked over these layers, each with an axis of heads.
        layers: numbers of the layers in the model, ascending.
    """

    values: tuple[Float[Array, "L B _ ..."], ...]
    layers: tuple[int, ...] = static_field()

    def of_layer(self, layer: Int32[Array, ""] | int) -> tuple[Float[Array, "B ..."], ...]:
        """The arrays of one layer of the model, traced or not.

        Raises:
            ValueError: a layer that is known and has no state.
        """
        return take_layer(self.values, place_in(Cells(self.layers), layer))

    def with_layer(
        self, layer: Int32[Array, ""] | int, values: tuple[Float[Array, "B ..."], ...]
    ) -> RecurrentState:
        """The states with other arrays for one layer, of the same shapes; errors: `of_layer`."""
        place = place_in(Cells(self.layers), layer)
        written = jax.tree.map(
            lambda all, x: jax.lax.dynamic_update_index_in_dim(all, x.astype(all.dtype), place, 0),
            self.values,
            values,
        )
        return dataclasses.replace(self, values=written)
