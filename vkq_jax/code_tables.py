"""Offline tables of dictionary codes: what calibration learns once for a model.

Tables belong to a model, not to a sequence: they lie beside the cache, and byte counts of a cache
leave them out (`CodeTables.nbytes` says how many they are).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.pytree import frozen_pytree

__all__ = ["ClassTables", "CodeTables", "SideTables", "align"]


@frozen_pytree
class ClassTables:
    """The dictionary of one class of tokens, of one side, for each KV head (and layer).

    A code of several bits per channel is several virtual channels, one for each of its bits.

    Attributes:
        analysis: P; row n is what the channel of virtual channel n is measured with, divided by
            the step between its codes.
        top: greatest code of that channel, 2^bits - 1.
        shift: which bit of the code the virtual channel is.
        dictionary: D; column n is what bit n adds to or takes from the token.
    """

    analysis: Float[Array, "*L K n H"]
    top: Int32[Array, "*L K n"]
    shift: Int32[Array, "*L K n"]
    dictionary: Float[Array, "*L K H n"]

    def check(self) -> None:
        """Raises ValueError for codes of more than 8 bits."""
        for name, greatest in (("top", 255), ("shift", 7)):
            values = getattr(self, name)
            if ((values < 0) | (values > greatest)).any():
                raise ValueError(f"{name} must be in [0, {greatest}]")


@frozen_pytree
class SideTables:
    """Tables of keys or of values.

    Attributes:
        codebook: centroids of centred tokens; None: tokens are coded around their centre.
        metric: A, a root of the metric in which tokens are compared, |A u|^2; None: the identity.
        classes: the dictionary of each class; None: Hadamard planes.
    """

    codebook: Float[Array, "*L K M H"] | None = None
    metric: Float[Array, "*L K H H"] | None = None
    classes: tuple[ClassTables | None, ...] | None = None

    def of_class(self, number: int) -> ClassTables | None:
        """The dictionary of a class; None: Hadamard planes."""
        return None if self.classes is None else self.classes[number]


@frozen_pytree
class CodeTables:
    """Tables of both sides, for all layers [L, K, ...] or for one [K, ...]."""

    key: SideTables
    value: SideTables

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))


def align(table: Float[Array, "*K a b"], ndim: int) -> Float[Array, "*lead a b"]:
    """A table in float32, with leading axes of size 1 to go with an array of `ndim` axes."""
    return table.astype(jnp.float32).reshape(*[1] * (ndim - table.ndim), *table.shape)
