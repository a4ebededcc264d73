"""Rotary position embedding: cosines and sines of positions, and their use.

RoPE rotates a pair of channels (i, i + H/2) of a query or key at position t by
t * inverse_frequency[i], H being the channels of a head that are rotated.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike

from models.layers.rope_config import RopeConfig
from models.layers.rope_frequencies import (
    attention_scaling,
    geometric_series,
    inverse_frequencies,
)
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["apply_rope", "grid_rope", "pairs_to_halves", "query_scale", "rope"]


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
        of_pair = positions[..., None]
    else:
        assert config.mrope is not None, "positions of several axes need M-RoPE"
        of_pair = positions[..., config.mrope.axis_of_pair(config.head_dim // 2)]
    angles = of_pair.astype(jnp.float32) * frequencies
    scaling = attention_scaling(config)
    return (jnp.cos(angles) * scaling).astype(dtype), (jnp.sin(angles) * scaling).astype(dtype)


def apply_rope(
    x: Float[Array, "B T heads H"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T heads H"]:
    """Rotates queries or keys, in their own dtype: pairs (i, i + half) of the first channels."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated + [rest] * bool(rest.shape[-1]), axis=-1)


def pairs_to_halves(x: Float[Array, "*lead H"], width: int) -> Float[Array, "*lead H"]:
    """Pairs (2i, 2i + 1) of the first `width` channels moved to (i, i + width / 2).

    Queries and keys reordered alike have the scores that they had, and are rotated as all others.
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
    """Cosine and sine of patches of a grid: half of the channels is rotated by each axis.

    The first half of the pairs (i, i + head_dim / 2) is rotated by the row, the second half by
    the column, both by the same frequencies. Source: Qwen2-VL, arXiv 2409.12191, section 2.1.

    Args:
        rows_and_columns: of each patch.
        head_dim: channels of a head, a multiple of 4; with `alternating` of 2.
        theta: base of the geometric series of wavelengths.
        dtype: of what is returned; angles are float32.
        alternating: rows and columns take every second frequency of one series in turn (Pixtral,
            arXiv 2410.07073, section 2.2).
    """
    if alternating:
        series = geometric_series(RopeConfig(head_dim=head_dim, max_length=1, theta=theta))
        frequencies = (series[0::2], series[1::2])
    else:
        series = geometric_series(RopeConfig(head_dim=head_dim // 2, max_length=1, theta=theta))
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
        positions: of the queries.
        beta: 0 or more.
        length: positions of pretraining.
        dtype: of what is returned; the logarithm is float32.
    """
    steps = (positions // length).astype(jnp.float32)
    return (1 + beta * jnp.log1p(steps)).astype(dtype)
