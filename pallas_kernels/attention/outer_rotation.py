"""The rotation of sign codes where it is not the kernel's own: in XLA, before and after a launch.

The kernel rotates by the Hadamard matrix of the channels that are stored, 64, 128 or 256. For
another H the codes were made with the R of H channels (`vkq_jax.bits.rotation`), so that the launch
takes them as not rotated. With q' = R q, whose length is that of q, it computes

    s'[t] = q' . c + a[t] (2 sum_i q'_i code[t, i] - sum_i q'_i - kappa a[t]),    o' = c + x

where s[t] = s'[t] + (q - q') . c and o = c + R x are wanted: a shift of all scores of a query, and
one more rotation of the result, whose weights sum to one.
"""

from typing import TypeGuard

import jax.numpy as jnp

from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import TiledSigns
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.bits import rotation
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.pytree import take_layer

__all__ = ["rotate_query", "rotates_outside", "unrotate_output"]


def rotates_outside(x: QuantizedTensor) -> TypeGuard[TiledSigns]:
    """Whether a launch takes these codes as not rotated although they are."""
    return isinstance(x, TiledSigns) and x.rotated and x.head_dim not in layouts.STORED_HEAD_DIMS


def rotate_query(
    query: Float[Array, "B K Q H"], key: TiledSigns, layer: Int32[Array, ""]
) -> tuple[Float[Array, "B K Q H"], Float[Array, "B K Q"]]:
    """The query for a launch over such keys, and what its scores then lack."""
    rotated = rotation.rotate(query)
    return rotated, jnp.sum((query - rotated) * _centre(key, layer), axis=-1)


def unrotate_output(
    output: Float[Array, "B K Q H"],
    logsumexp: Float[Array, "B K Q"],
    value: TiledSigns,
    layer: Int32[Array, ""],
) -> Float[Array, "B K Q H"]:
    """The output from that of a launch over such values; 0 where nothing is visible."""
    centre = _centre(value, layer)
    seen = jnp.isfinite(logsumexp)[..., None]
    return jnp.where(seen, centre + rotation.unrotate(output - centre), 0.0)


def _centre(x: TiledSigns, layer: Int32[Array, ""]) -> Float[Array, "B K 1 H"]:
    return take_layer(x.centre, layer)[..., : x.head_dim].astype(jnp.float32)
