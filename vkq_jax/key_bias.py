"""The bias of the keys' projection, kept out of the codes and added to the scores exactly.

Some towers (Qwen2, Qwen2.5-VL, GLM-4V) add a bias to their keys whose norm is tens of times that of
the rest. RoPE turns it by each token's position, so that it runs through the tokens as sinusoids
which no centre of a channel can follow. Its share of a score needs no cache: keys are
RoPE_t(k + b), so

    q . key = q . RoPE_t(k) + q . RoPE_t(b)

and the second term follows from the query, the bias and the position t alone. Only RoPE_t(k) is
coded.
"""

from __future__ import annotations

import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.exact_einsum import exact_einsum
from vkq_jax.pytree import frozen_pytree, static_field, take_layer

__all__ = ["KeyBias"]


@frozen_pytree
class KeyBias:
    """A key bias b and how RoPE turns it: channels (i, i + half) by position * frequencies[i].

    Attributes:
        bias: b of each KV head, float32; of all layers [L, K, H] or of one [K, H].
        frequencies: radians a position, float32; channels from 2 * half on do not turn.
        axis_of_pair: where positions have several axes (M-RoPE): the axis that turns each pair.
        scaling: factor by which RoPE multiplies the turned channels.
    """

    bias: Float[Array, "*L K H"]
    frequencies: Float[Array, "half"]
    axis_of_pair: tuple[int, ...] | None = static_field(default=None)
    scaling: float = static_field(default=1.0)

    def of_layer(self, index: Int32[Array, ""] | int) -> KeyBias:
        """One layer's bias; `index` may be traced."""
        bias = take_layer(self.bias, index)
        return KeyBias(bias, self.frequencies, self.axis_of_pair, self.scaling)

    def turned(self, positions: Int32[Array, "B V *axes"]) -> Float[Array, "B V K H"]:
        """RoPE_t(b) of one layer at `positions`, float32: the bias's share of each key."""
        cos, sin = self._angles(positions)
        first, second, still = self._split(self.bias[None, None])
        cos, sin = cos[:, :, None], sin[:, :, None]
        shape = (*cos.shape[:2], *still.shape[2:])
        parts = [first * cos - second * sin, second * cos + first * sin]
        return jnp.concatenate([*parts, jnp.broadcast_to(still, shape)], axis=-1)

    def taken_out(
        self, key: Float[Array, "B V K H"], positions: Int32[Array, "B V *axes"]
    ) -> Float[Array, "B V K H"]:
        """Keys of one layer without their bias: RoPE_t(k) of `key` = RoPE_t(k + b) at `positions`.

        The result has the dtype of `key`.
        """
        return (key.astype(jnp.float32) - self.turned(positions)).astype(key.dtype)

    def scores(
        self, q: Float[Array, "B K Q H"], positions: Int32[Array, "B V *axes"]
    ) -> Float[Array, "B K Q V"]:
        """q . RoPE_t(b) of one layer at `positions`, float32, without the [B, V, K, H] keys."""
        cos, sin = self._angles(positions)
        q_first, q_second, q_still = self._split(q)
        first, second, still = self._split(self.bias[None, :, None])
        even = q_first * first + q_second * second
        odd = q_second * first - q_first * second
        turning = exact_einsum("bkqi,bvi->bkqv", even, cos) + exact_einsum(
            "bkqi,bvi->bkqv", odd, sin
        )
        return turning + (q_still * still).sum(-1, keepdims=True)

    def _angles(
        self, positions: Int32[Array, "B V *axes"]
    ) -> tuple[Float[Array, "B V half"], Float[Array, "B V half"]]:
        if positions.ndim == 2:
            of_pair = positions[..., None]
        else:
            assert self.axis_of_pair is not None
            of_pair = positions[..., jnp.asarray(self.axis_of_pair)]
        angles = of_pair.astype(jnp.float32) * self.frequencies[None, None]
        return jnp.cos(angles) * self.scaling, jnp.sin(angles) * self.scaling

    def _split(self, x: Float[Array, "*lead H"]) -> tuple[Array, Array, Array]:
        half = self.frequencies.shape[-1]
        return x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
