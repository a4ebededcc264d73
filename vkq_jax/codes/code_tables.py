"""Offline tables of dictionary codes: what calibration learns once for a model.

Tables belong to a model, not to a sequence: they lie beside the cache, and byte counts of a cache
leave them out (`CodeTables.nbytes` says how many they are).
"""

from __future__ import annotations

import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.pytree import frozen_pytree, nbytes

__all__ = ["ClassTables", "CodeTables", "SideTables", "align"]


@frozen_pytree
class ClassTables:
    """The transform code of one class of tokens, of one side, for each KV head (and layer).

        z = E u,    code[i] = clip(round(z[i] / step[i] + top[i] / 2), 0, top[i])
        D s = F y,  y[i] = sum of weight[m] s[m] over the virtual channels m of channel i

    A code of several bits is several virtual channels, one for each bit: D [H, n] has a column for
    each, made when it is needed, so that the tables have H^2 numbers whatever n is.

    Attributes:
        analysis: E.
        synthesis: F; None: the transpose of E.
        step: between the codes of a channel.
        top: greatest code, 2^bits - 1.
        channel: of each virtual channel.
        shift: which bit of its channel's code it is.
        weight: what the bit adds or takes away, gain * step * 2^(shift - 1).
    """

    analysis: Float[Array, "*L K H H"]
    synthesis: Float[Array, "*L K H H"] | None
    step: Float[Array, "*L K H"]
    top: Int32[Array, "*L K H"]
    channel: Int32[Array, "*L K n"]
    shift: Int32[Array, "*L K n"]
    weight: Float[Array, "*L K n"]

    def check(self) -> None:
        """Raises ValueError for numbers of channels, codes or bits that cannot be."""
        channels = self.step.shape[-1]
        for name, stop in (("top", 256), ("channel", channels), ("shift", 8)):
            values = getattr(self, name)
            if ((values < 0) | (values >= stop)).any():
                raise ValueError(f"{name} must be in [0, {stop})")

    @property
    def virtual(self) -> int:
        """n, bits of a token."""
        return self.channel.shape[-1]

    def dictionary(self) -> Float[Array, "*L K H n"]:
        """D, float32."""
        if self.synthesis is None:
            synthesis = jnp.swapaxes(self.analysis, -1, -2)
        else:
            synthesis = self.synthesis
        columns = jnp.take_along_axis(
            synthesis.astype(jnp.float32), self.channel[..., None, :], axis=-1
        )
        return columns * self.weight[..., None, :]


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
        """The dictionary of class `number`; None: Hadamard planes."""
        return None if self.classes is None else self.classes[number]


@frozen_pytree
class CodeTables:
    """Tables of keys and values, for all layers [L, K, ...] or for one [K, ...].

    Attributes:
        key, value: tables of one side each.
    """

    key: SideTables
    value: SideTables

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return nbytes(self)


def align(table: Float[Array, "*K a b"], ndim: int) -> Float[Array, "*lead a b"]:
    """A table in float32, with leading axes of size 1 to go with an array of `ndim` axes."""
    return table.astype(jnp.float32).reshape(*[1] * (ndim - table.ndim), *table.shape)
