"""Inverse frequencies of the rotary position embedding, and the factor of its cosines and sines.

The kinds differ only in how the frequencies are stretched beyond the length seen in pretraining.
"""

import math

import jax.numpy as jnp
import numpy as np

from models.layers.rope_config import RopeConfig, RopeKind
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["attention_scaling", "geometric_series", "inverse_frequencies"]


def inverse_frequencies(config: RopeConfig, length: Int32[Array, ""] | int) -> Float[Array, "half"]:
    """Radians per position of each pair of channels, float32.

    `length` is the largest position of the call plus one, possibly traced; only the dynamic and
    longrope kinds read it.
    """
    match config.kind:
        case RopeKind.DEFAULT:
            return jnp.asarray(geometric_series(config))
        case RopeKind.LINEAR:
            return jnp.asarray(geometric_series(config) / np.float32(config.stretch))
        case RopeKind.DYNAMIC:
            return _dynamic(config, length)
        case RopeKind.YARN:
            return jnp.asarray(_yarn(config))
        case RopeKind.LONGROPE:
            return _longrope(config, length)
        case RopeKind.LLAMA3:
            return jnp.asarray(_llama3(config))
        case RopeKind.PROPORTIONAL:
            rotated = np.arange(config.head_dim // 2) < config.rotated_pairs
            stretch = 1.0 if config.factor is None else config.factor
            return jnp.asarray(geometric_series(config) * rotated / np.float32(stretch))


def attention_scaling(config: RopeConfig) -> float:
    """The factor of cosine and sine: 1, except for yarn and longrope."""
    if config.kind not in (RopeKind.YARN, RopeKind.LONGROPE):
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.stretch <= 1:
        return 1.0
    if config.kind is RopeKind.LONGROPE:
        return math.sqrt(1 + math.log(config.stretch) / math.log(config.pretraining_length))
    growth = 0.1 * math.log(config.stretch)
    if config.mscale and config.mscale_all_dim:
        return (growth * config.mscale + 1) / (growth * config.mscale_all_dim + 1)
    return growth + 1


def _exponents(config: RopeConfig) -> np.ndarray:
    return np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)


def geometric_series(config: RopeConfig) -> np.ndarray:
    """theta ** (-2 i / H) of each pair i [H / 2], float32: frequencies that are not stretched."""
    return np.float32(1) / np.float32(config.theta) ** _exponents(config)


def _dynamic(config: RopeConfig, length: Int32[Array, ""] | int) -> Float[Array, "half"]:
    """The base grows with the call's length once that exceeds `max_length` (NTK-aware scaling)."""
    excess = jnp.maximum(length, config.max_length).astype(jnp.float32) / config.max_length
    growth = config.stretch * excess - (config.stretch - 1)
    base = config.theta * growth ** (config.head_dim / (config.head_dim - 2))
    return 1 / base ** jnp.asarray(_exponents(config))


def _yarn(config: RopeConfig) -> np.ndarray:
    """Fast pairs keep their frequency, slow pairs are stretched, a linear ramp joins them."""

    def pair_of(rotations: float) -> float:
        """The pair (as a real number) that makes so many rotations over the pretraining length."""
        wavelength = config.pretraining_length / (rotations * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = pair_of(config.beta_fast), pair_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high += 0.001 if low == high else 0  # a ramp of no width would divide by zero
    pairs = np.arange(config.head_dim // 2, dtype=np.float32)
    stretched = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    frequencies = geometric_series(config)
    return frequencies / np.float32(config.stretch) * stretched + frequencies * (1 - stretched)


def _longrope(config: RopeConfig, length: Int32[Array, ""] | int) -> Float[Array, "half"]:
    short = geometric_series(config) / np.asarray(config.short_factor, np.float32)
    long = geometric_series(config) / np.asarray(config.long_factor, np.float32)
    return jnp.where(length > config.pretraining_length, jnp.asarray(long), jnp.asarray(short))


def _llama3(config: RopeConfig) -> np.ndarray:
    """Wavelengths beyond the pretraining length are stretched, a smooth band joins them."""
    frequencies = geometric_series(config)
    rotations = np.float32(config.pretraining_length) * frequencies / np.float32(2 * math.pi)
    low, high = np.float32(config.low_freq_factor), np.float32(config.high_freq_factor)
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / np.float32(config.stretch) + kept * frequencies
