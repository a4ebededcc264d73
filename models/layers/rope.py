"""Rotary position embedding: inverse frequencies of every published kind, and their use.

A pair of channels (i, i + H/2) of a query or key at position t turns by t * inverse_frequency[i],
H being the channels of a head that turn.
The kinds differ only in how the frequencies are stretched beyond the length seen in pretraining.
"""

import dataclasses
import math
from enum import StrEnum

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vkq_jax.array_types import Array, Float, Int32

__all__ = [
    "MRope",
    "RopeConfig",
    "RopeKind",
    "apply_rope",
    "attention_scaling",
    "grid_rope",
    "inverse_frequencies",
    "pairs_to_halves",
    "query_scale",
    "rope",
]


class RopeKind(StrEnum):
    """How frequencies are stretched."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LONGROPE = "longrope"
    LLAMA3 = "llama3"
    PROPORTIONAL = "proportional"


@dataclasses.dataclass(frozen=True)
class MRope:
    """Multimodal RoPE: each pair of channels turns with one axis (time, row, column) of a position.

    Source: Qwen2-VL, arXiv 2409.12191, section 2.1.

    Attributes:
        section: pairs of each axis.
        interleaved: whether rows and columns take every third pair (Qwen3-VL) instead of runs.
    """

    section: tuple[int, int, int]
    interleaved: bool = False

    def axis_of_pair(self, pairs: int) -> np.ndarray:
        """The axis, 0 to 2, that each of `pairs` pairs of channels turns with."""
        if not self.interleaved:
            return np.repeat(np.arange(3), self.section)
        axes = np.zeros(pairs, np.int64)
        for axis in (1, 2):
            axes[axis : 3 * self.section[axis] : 3] = axis
        return axes


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Settings of the rotary embedding; each kind reads only what its formula needs.

    Attributes:
        kind: the formula. head_dim: channels of a head that turn, the first ones.
        theta: base of the geometric series of wavelengths.
        max_length: longest sequence the model is meant for.
        original_max_length: longest sequence of pretraining, before any stretching.
        factor: stretching; None where it is max_length / original_max_length.
        attention_factor: explicit value of `attention_scaling` (yarn, longrope).
        beta_fast, beta_slow, truncate, mscale, mscale_all_dim: yarn's ramp and scaling.
        low_freq_factor, high_freq_factor: llama3's band of interpolation.
        short_factor, long_factor: longrope's divisors, one per pair of channels.
        turning: pairs of channels that turn, the first ones (proportional).
        interleaved: the channels of a pair lie side by side (2i, 2i + 1) in the weights, see
            `pairs_to_halves`.
        mrope: how pairs of channels are shared among the axes of a position; None: one axis.
    """

    head_dim: int
    max_length: int
    kind: RopeKind = RopeKind.DEFAULT
    theta: float = 10000.0
    original_max_length: int | None = None
    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    turning: int = 0
    interleaved: bool = False
    mrope: MRope | None = None

    def __post_init__(self):
        """Checks what the settings say together; their ranges are those of the file they come from.

        Raises:
            ValueError: settings that contradict each other, named as in Hugging Face's files.
        """
        least = 4 if self.kind is RopeKind.DYNAMIC else 2  # dynamic's exponent divides by H - 2
        if self.head_dim < least or self.head_dim % 2:
            raise ValueError(
                f"head_dim: expected an even number of at least {least} for "
                f"rope_type={self.kind.value!r}, got {self.head_dim}"
            )
        if self.kind is RopeKind.LLAMA3 and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor: expected less than high_freq_factor={self.high_freq_factor}, "
                f"got {self.low_freq_factor}"
            )
        if self.kind is RopeKind.YARN and self.beta_fast < self.beta_slow:
            raise ValueError(
                f"beta_fast: expected at least beta_slow={self.beta_slow}, got {self.beta_fast}"
            )
        runs = () if self.mrope is None or self.mrope.interleaved else self.mrope.section
        if runs and sum(runs) != self.head_dim // 2:
            raise ValueError(
                f"mrope_section: expected numbers that sum to {self.head_dim // 2}, half of the "
                f"channels that turn, got {list(runs)}, whose sum is {sum(runs)}"
            )
        for name in ("short_factor", "long_factor") if self.kind is RopeKind.LONGROPE else ():
            if (count := len(getattr(self, name))) != self.head_dim // 2:
                raise ValueError(
                    f"{name}: expected {self.head_dim // 2} numbers, half of "
                    f"head_dim={self.head_dim}, got {count}"
                )

    @property
    def pretraining_length(self) -> int:
        """Longest sequence of pretraining."""
        return self.original_max_length or self.max_length

    @property
    def stretch(self) -> float:
        """The factor, explicit or implied by the two lengths."""
        return self.max_length / self.pretraining_length if self.factor is None else self.factor


def rope(
    positions: Int32[Array, "B T *axes"], config: RopeConfig, dtype: DTypeLike
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of the angles at `positions`, computed in float32 and returned in `dtype`.

    Positions are numbers, or triples (time, row, column) where `config.mrope` is set. The dynamic
    and longrope kinds choose their frequencies by the largest position of the call, over the whole
    batch.
    """
    frequencies = inverse_frequencies(config, positions.max() + 1)
    if positions.ndim == 2:
        turned = positions[..., None]
    else:
        assert config.mrope is not None, "positions of several axes need M-RoPE"
        turned = positions[..., config.mrope.axis_of_pair(config.head_dim // 2)]
    angles = turned.astype(jnp.float32) * frequencies
    scaling = attention_scaling(config)
    return (jnp.cos(angles) * scaling).astype(dtype), (jnp.sin(angles) * scaling).astype(dtype)


def apply_rope(
    x: Float[Array, "B T heads H"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T heads H"]:
    """Rotates queries or keys, in their own dtype: pairs (i, i + half) of the first channels."""
    half = cos.shape[-1]
    first, second, still = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned + [still] * bool(still.shape[-1]), axis=-1)


def pairs_to_halves(x: Float[Array, "*lead H"], width: int) -> Float[Array, "*lead H"]:
    """Pairs (2i, 2i + 1) of the first `width` channels moved to (i, i + width / 2).

    Queries and keys reordered alike have the scores that they had, and turn as all others do.
    """
    parts = [x[..., :width:2], x[..., 1:width:2], x[..., width:]]
    return jnp.concatenate(parts[: 3 if x.shape[-1] > width else 2], axis=-1)


def grid_rope(
    rows_and_columns: Int32[Array, "B P 2"],
    head_dim: int,
    theta: float,
    dtype: DTypeLike,
    *,
    alternating: bool = False,
) -> tuple[Float[Array, "B P half"], Float[Array, "B P half"]]:
    """Cosine and sine of patches of a grid: half of the channels turns with each axis.

    The first half of the pairs (i, i + head_dim / 2) turns with the row, the second half with the
    column, both by the same frequencies. Source: Qwen2-VL, arXiv 2409.12191, section 2.1.

    Args:
        rows_and_columns: of each patch.
        head_dim: channels of a head, a multiple of 4; with `alternating` of 2.
        theta: base of the geometric series of wavelengths.
        dtype: of what is returned; angles are float32.
        alternating: rows and columns take every second frequency of one series in turn (Pixtral,
            arXiv 2410.07073, section 2.2).
    """
    if alternating:
        series = _geometric(RopeConfig(head_dim=head_dim, max_length=1, theta=theta))
        frequencies = (series[0::2], series[1::2])
    else:
        series = _geometric(RopeConfig(head_dim=head_dim // 2, max_length=1, theta=theta))
        frequencies = (series, series)
    places = rows_and_columns.astype(jnp.float32)
    angles = jnp.concatenate(
        [places[..., [axis]] * each for axis, each in enumerate(frequencies)], axis=-1
    )
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def query_scale(
    positions: Int32[Array, "B T"], beta: float, length: int, dtype: DTypeLike
) -> Float[Array, "B T"]:
    """1 + beta * ln(1 + floor(position / length)): what Ministral 3 multiplies queries by.

    Args:
        positions: of the queries. beta: 0 or more. length: positions of pretraining.
        dtype: of what is returned; the logarithm is float32.
    """
    steps = (positions // length).astype(jnp.float32)
    return (1 + beta * jnp.log1p(steps)).astype(dtype)


def inverse_frequencies(config: RopeConfig, length: Int32[Array, ""] | int) -> Float[Array, "half"]:
    """Radians per position of each pair of channels, float32.

    `length` is the largest position of the call plus one, possibly traced; only the dynamic and
    longrope kinds read it.
    """
    match config.kind:
        case RopeKind.DEFAULT:
            return jnp.asarray(_geometric(config))
        case RopeKind.LINEAR:
            return jnp.asarray(_geometric(config) / np.float32(config.stretch))
        case RopeKind.DYNAMIC:
            return _dynamic(config, length)
        case RopeKind.YARN:
            return jnp.asarray(_yarn(config))
        case RopeKind.LONGROPE:
            return _longrope(config, length)
        case RopeKind.LLAMA3:
            return jnp.asarray(_llama3(config))
        case RopeKind.PROPORTIONAL:
            turns = np.arange(config.head_dim // 2) < config.turning
            stretch = 1.0 if config.factor is None else config.factor
            return jnp.asarray(_geometric(config) * turns / np.float32(stretch))


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


def _geometric(config: RopeConfig) -> np.ndarray:
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
        """The pair (as a real number) that makes so many turns over the pretraining length."""
        wavelength = config.pretraining_length / (rotations * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = pair_of(config.beta_fast), pair_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high += 0.001 if low == high else 0  # a ramp of no width would divide by zero
    pairs = np.arange(config.head_dim // 2, dtype=np.float32)
    stretched = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    frequencies = _geometric(config)
    return frequencies / np.float32(config.stretch) * stretched + frequencies * (1 - stretched)


def _longrope(config: RopeConfig, length: Int32[Array, ""] | int) -> Float[Array, "half"]:
    short = _geometric(config) / np.asarray(config.short_factor, np.float32)
    long = _geometric(config) / np.asarray(config.long_factor, np.float32)
    return jnp.where(length > config.pretraining_length, jnp.asarray(long), jnp.asarray(short))


def _llama3(config: RopeConfig) -> np.ndarray:
    """Wavelengths beyond the pretraining length are stretched, a smooth band joins them."""
    frequencies = _geometric(config)
    turns = np.float32(config.pretraining_length) * frequencies / np.float32(2 * math.pi)
    low, high = np.float32(config.low_freq_factor), np.float32(config.high_freq_factor)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / np.float32(config.stretch) + kept * frequencies
