"""Fitting dictionaries: transform codes of the principal channels, bits to the strong ones."""

from __future__ import annotations

import functools
import heapq

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Float
from vkq_jax.bits import rotation
from vkq_jax.codes.code_tables import ClassTables
from vkq_jax.codes.dictionary_tensor import hadamard_bits
from vkq_jax.codes.normal_steps import NORMAL_STEPS

__all__ = ["fit_dictionary", "metric_root", "mixed_basis"]

_MOST_BITS = 7
# Channels are not normal: the steps of normal ones are tried times each of these.
_FACTORS = (0.8, 0.9, 1.0, 1.12, 1.25, 1.45)
_RIDGE = 0.02
_TABLE_DTYPE = jnp.bfloat16


def metric_root(moment: Float[Array, "K H H"]) -> Float[Array, "K H H"]:
    """A = S^(1/2) of each head's metric S, with a ridge of 2 % of its mean eigenvalue.

    Scaled to a mean eigenvalue of S of 1; the scale of a metric means nothing.
    """
    size = moment.shape[-1]
    mean = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None] / size
    ridge = _RIDGE * jnp.where(mean > 0, mean, 1.0) * jnp.eye(size, dtype=jnp.float32)[None]
    values, vectors = jnp.linalg.eigh(moment + ridge)
    values = jnp.maximum(values, 1e-12)
    values = values / values.mean(-1, keepdims=True)
    return (vectors * jnp.sqrt(values)[:, None]) @ jnp.swapaxes(vectors, -1, -2)


def mixed_basis(moment: Float[Array, "K H H"]) -> Float[Array, "K H H"]:
    """Channels in columns, among which a moment, such as that of the queries, is spread evenly.

    Its principal channels are mixed by the Hadamard matrix: errors of equal size in each of them
    then do the same harm (OSCAR, arXiv 2605.17757).
    """
    _, channels = jnp.linalg.eigh(moment)
    return channels @ jnp.asarray(rotation.hadamard(moment.shape[-1]))


def fit_dictionary(
    tokens: Float[Array, "K n H"],
    weight: Float[Array, "K n"],
    metric: Float[Array, "K H H"] | None,
    virtual: int,
    basis: Float[Array, "K H H"] | None = None,
) -> ClassTables:
    """The transform code of `virtual` bits a token, for each head.

    Tokens are turned into the principal channels U of their weighted covariance in the metric.
    Bits go one by one to the channel whose measured distortion they lower most, 7 at most; the
    step of a channel is the best of six; its gain E z^2 / E z z_hat makes it unbiased: squared
    error would shrink just what matters (see `DictionaryCodes`).

        z = U^T A u,   x_hat = A^-1 U (gain step (code - (2^bits - 1) / 2))

    Args:
        tokens: u, less their centres and, where tokens have a scale, divided by it.
        weight: how much each token counts, for instance its share of the attention.
        metric: A; None: the identity.
        virtual: n, bits of a token.
        basis: orthonormal channels, in columns, that take the place of U; all have the same number
            of bits, or one more.

    Raises:
        ValueError: there are more bits than the channels can take.
    """
    heads, _, head_dim = tokens.shape
    if not 0 <= virtual <= _MOST_BITS * head_dim:
        raise ValueError(
            f"virtual: expected [0, {_MOST_BITS * head_dim}] bits of a token, what {head_dim} "
            f"channels of a head can take, got {virtual}"
        )
    identity = jnp.broadcast_to(jnp.eye(head_dim, dtype=jnp.float32), (heads, head_dim, head_dim))
    root = identity if metric is None else metric
    measured = _measure(tokens, weight, root, basis)
    channels, distortion, step, gain = jax.tree.map(np.asarray, measured)
    layouts = []
    for k in range(heads):
        bits = hadamard_bits(head_dim, virtual) if basis is not None else None
        bits = _spend(distortion[k], virtual) if bits is None else bits
        layouts.append(_lay_out(bits, step[k], gain[k]))
    analysis = np.swapaxes(channels, -1, -2) @ np.asarray(root)
    synthesis = None
    if metric is not None:
        synthesis = jnp.asarray(np.linalg.solve(np.asarray(metric), channels), _TABLE_DTYPE)
    return ClassTables(
        jnp.asarray(analysis, _TABLE_DTYPE),
        synthesis,
        *(jnp.asarray(np.stack(x)) for x in zip(*layouts, strict=True)),
    )


@jax.jit
def _measure(
    tokens: Float[Array, "K n H"],
    weight: Float[Array, "K n"],
    root: Float[Array, "K H H"],
    basis: Float[Array, "K H H"] | None,
) -> tuple[Array, Array, Array, Array]:
    """Channels [K, H, H]; distortion, step and gain of each for 0 to 7 bits [K, H, 8]."""
    share = (weight / weight.sum(-1, keepdims=True))[..., None]
    with jax.default_matmul_precision("highest"):
        y = jnp.einsum("knh,kgh->kng", tokens.astype(jnp.float32), root)
        if basis is None:
            _, channels = jnp.linalg.eigh(jnp.einsum("knh,kng->khg", y * share, y))
        else:
            channels = basis
        z = jnp.einsum("knh,khc->knc", y, channels)
    mean = functools.partial(jnp.sum, axis=1)
    variance = jnp.maximum(mean(z * z * share), 1e-20)
    best = [(variance, jnp.ones_like(variance), jnp.zeros_like(variance))]
    for bits, normal in enumerate(NORMAL_STEPS[1 : _MOST_BITS + 1], start=1):
        half = (2**bits - 1) / 2
        error, step, gain = jnp.full_like(variance, jnp.inf), best[0][1], best[0][2]
        for factor in _FACTORS:
            new_step = factor * normal * jnp.sqrt(variance)
            scaled = z / new_step[:, None]
            decoded = (jnp.clip(jnp.round(scaled + half), 0, 2 * half) - half) * new_step[:, None]
            new_error = mean(jnp.square(z - decoded) * share)
            new_gain = variance / jnp.maximum(mean(z * decoded * share), 1e-20)
            better = new_error < error
            error = jnp.where(better, new_error, error)
            step = jnp.where(better, new_step, step)
            gain = jnp.where(better, new_gain, gain)
        # More bits are never worse, whatever the sample says.
        best.append((jnp.minimum(error, best[-1][0] * 0.999), step, gain))
    distortion, step, gain = (jnp.stack(x, axis=-1) for x in zip(*best, strict=True))
    return channels, distortion, step, gain


def _spend(distortion: np.ndarray, virtual: int) -> np.ndarray:
    """Bits of each channel, `virtual` in all."""
    bits = np.zeros(len(distortion), int)
    saved = [(row[1] - row[0], channel) for channel, row in enumerate(distortion.tolist())]
    heapq.heapify(saved)
    for _ in range(virtual):
        _, channel = heapq.heappop(saved)
        bits[channel] += 1
        row, now = distortion[channel], bits[channel]
        if now < _MOST_BITS:
            heapq.heappush(saved, (float(row[now + 1] - row[now]), channel))
    return bits


def _lay_out(bits: np.ndarray, steps: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, ...]:
    """One head's step, top, channel, shift and weight."""
    each = np.arange(len(bits))
    channel = np.repeat(each, bits)
    shift = np.arange(len(channel)) - np.repeat(np.cumsum(bits) - bits, bits)
    step, gain = steps[each, bits], gains[each, bits]
    return (
        step.astype(np.float32),
        (2**bits - 1).astype(np.int32),
        channel.astype(np.int32),
        shift.astype(np.int32),
        ((gain * step)[channel] * 2.0 ** (shift - 1)).astype(np.float32),
    )
