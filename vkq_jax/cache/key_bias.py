"""The bias of the keys' projection, kept out of the codes and added to the scores exactly.

Some towers (Qwen2, Qwen2.5-VL, GLM-4V) add a bias to their keys whose norm is tens of times that of
the rest. RoPE rotates it by each token's position, so that it runs through the tokens as sinusoids
which no centre of a channel can follow. Its share of a score needs no cache: keys are
RoPE_t(k + b), so

    q . key = q . RoPE_t(k) + q . RoPE_t(b)

and the second term follows from the query, the bias and the position t alone. Only RoPE_t(k) is
coded.

It is a sum over the axes of positions, each of which takes few values: a picture of 8,192 tokens
has some 90 rows and columns, and sequences and heads share positions. Where a bound of these is
known (`visual_reach`), decoding makes cosines and sines of each position below
it once (`with_waves`); a layer then has one product with them, and a token one entry of it an axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.bits.exact_einsum import exact_einsum
from vkq_jax.pytree import frozen_pytree, static_field, take_layer
from vkq_jax.validation import is_traced

__all__ = ["FIELD_BITS", "KeyBias", "visual_reach"]

FIELD_BITS = 10  # of a position on one of several axes, in `KeyBias.entries`
_FEW = 512  # positions that always pay


@frozen_pytree
class KeyBias:
    """A key bias b and how RoPE rotates it: channels (i, i + half) by position * frequencies[i].

    Attributes:
        bias: b of each KV head, float32; of all layers [L, K, H] or of one [K, H].
        frequencies: radians a position, float32; channels from 2 * half on are not rotated.
        axis_of_pair: where positions have several axes (M-RoPE): the axis that rotates each pair.
        scaling: factor by which RoPE multiplies the rotated channels.
        waves: cosines and sines at the positions 0 to N - 1 that all visual tokens have, see
            `with_waves`; None: they are made from the positions of each token.
    """

    bias: Float[Array, "*L K H"]
    frequencies: Float[Array, "half"]
    axis_of_pair: tuple[int, ...] | None = static_field(default=None)
    scaling: float = static_field(default=1.0)
    waves: Float[Array, "A N C"] | None = None

    def of_layer(self, index: Int32[Array, ""] | int) -> KeyBias:
        """One layer's bias; `index` may be traced."""
        return dataclasses.replace(self, bias=take_layer(self.bias, index))

    def rotated(self, positions: Int32[Array, "B V *axes"]) -> Float[Array, "B V K H"]:
        """RoPE_t(b) of one layer at `positions`, float32: the bias's share of each key."""
        cos, sin = self._angles(positions)
        first, second, rest = self._split(self.bias[None, None])
        cos, sin = cos[:, :, None], sin[:, :, None]
        shape = (*cos.shape[:2], *rest.shape[2:])
        parts = [first * cos - second * sin, second * cos + first * sin]
        return jnp.concatenate([*parts, jnp.broadcast_to(rest, shape)], axis=-1)

    def taken_out(
        self, key: Float[Array, "B V K H"], positions: Int32[Array, "B V *axes"]
    ) -> Float[Array, "B V K H"]:
        """Keys of one layer without their bias: RoPE_t(k) of `key` = RoPE_t(k + b) at `positions`.

        The result has the dtype of `key`.
        """
        return (key.astype(jnp.float32) - self.rotated(positions)).astype(key.dtype)

    def scores(
        self, q: Float[Array, "B K Q H"], positions: Int32[Array, "B V *axes"]
    ) -> Float[Array, "B K Q V"]:
        """q . RoPE_t(b) of one layer at `positions`, float32, without the [B, V, K, H] keys."""
        waves = self._with_rest(*self._angles(positions))
        return exact_einsum("bkqc,bvc->bkqv", self.coefficients(q), waves)

    def coefficients(self, q: Float[Array, "B K Q H"]) -> Float[Array, "B K Q C"]:
        """Factors of cosines, of sines and of unrotated channels, in scores of `q`."""
        q_first, q_second, q_rest = self._split(q)
        first, second, rest = self._split(self.bias[None, :, None])
        even = q_first * first + q_second * second
        odd = q_second * first - q_first * second
        parts = [even, odd]
        if rest.shape[-1]:
            parts.append((q_rest * rest).sum(-1, keepdims=True))
        return jnp.concatenate(parts, axis=-1)

    @property
    def num_axes(self) -> int:
        """Axes of positions."""
        return 1 if self.axis_of_pair is None else 3

    def with_waves(self, below: int | None, num_tokens: int) -> KeyBias:
        """The bias with `waves` of all positions below a bound; None: there is none.

        It stays without them where a product with them took longer than one with each token's own,
        for `num_tokens` visual tokens a sequence, and where positions do not fit into `entries`.
        """
        axes = self.num_axes
        if below is None or axes * below > max(4 * num_tokens, _FEW):
            return self
        if axes > 1 and below > 1 << FIELD_BITS:
            return self
        positions = jnp.arange(below, dtype=jnp.int32)[None]
        cos, sin = self._angles(positions)
        numbers = np.arange(axes)[:, None, None]
        of_pair = np.zeros(len(self.frequencies)) if axes == 1 else np.asarray(self.axis_of_pair)
        own = of_pair[None, None] == numbers
        waves = self._with_rest(
            jnp.where(own, cos, 0), jnp.where(own, sin, 0), jnp.asarray(numbers == 0)
        )
        return dataclasses.replace(self, waves=waves)

    def entries(self, positions: Int32[Array, "B V *axes"]) -> Int32[Array, "B V"]:
        """Where a token's share is in a product with `waves`; of several axes 10 bits for each."""
        if self.num_axes == 1:
            return positions
        if positions.ndim == 2:
            positions = jnp.repeat(positions[..., None], 3, axis=-1)
        first, second, third = (positions[..., axis] << FIELD_BITS * axis for axis in range(3))
        return first | second | third

    def looked_up(
        self, q: Float[Array, "B K Q H"], entries: Int32[Array, "B k S"]
    ) -> Float[Array, "B K Q S"]:
        """`scores` at the `entries` of tokens, in their order; k is K, or 1: the same for all."""
        assert self.waves is not None
        found = exact_einsum("bkqc,anc->abkqn", self.coefficients(q), self.waves)
        entries = jnp.broadcast_to(entries, (*q.shape[:2], entries.shape[-1]))
        if len(found) == 1:
            return _take(found[0], entries)
        mask = (1 << FIELD_BITS) - 1
        fields = (entries >> (FIELD_BITS * axis) & mask for axis in range(len(found)))
        first, *others = map(_take, found, fields)
        return sum(others, first)

    def _with_rest(self, cos: Array, sin: Array, rest: Array | bool = True) -> Array:
        """Cosines, sines and, where channels are not rotated, what these are multiplied by."""
        if self.bias.shape[-1] == 2 * len(self.frequencies):
            return jnp.concatenate([cos, sin], axis=-1)
        rest = jnp.broadcast_to(jnp.asarray(rest, jnp.float32), (*cos.shape[:-1], 1))
        return jnp.concatenate([cos, sin, rest], axis=-1)

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


def _take(table: Float[Array, "B K Q N"], entries: Int32[Array, "B K S"]) -> Array:
    """Columns of each head's table [B, K, Q, S]."""
    of_head = jax.vmap(jax.vmap(lambda x, i: jnp.take(x, i, axis=-1, mode="clip")))
    return of_head(table, entries)


def visual_reach(
    positions: Sequence[Int32[Array, "_ _ ..."] | Int32[np.ndarray, "_ _ ..."]],
) -> int | None:
    """A bound of positions [B, V, *axes] on all axes: they are from 0 on and below it; rounded up.

    None where they are traced or negative, and where there are none. Rounding, to few sizes between
    two powers of two, lets conversations share compiled programs.
    """
    if is_traced(positions):
        return None
    positions = [x for x in positions if x.size]
    if not positions:
        return None
    with jax.ensure_compile_time_eval():  # they may be constants of an outer jit
        lowest, highest = zip(*((jnp.min(x), jnp.max(x)) for x in positions), strict=True)
    if min(map(int, lowest)) < 0:
        return None
    count = 1 + max(map(int, highest))
    step = max(128, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step
