"""Groups of positions that share a table, and statistics over the valid elements of a group."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Shaped
from vkq_jax.messages import show

__all__ = [
    "LARGEST",
    "as_stored",
    "check_group_size",
    "check_table_dtype",
    "coded_input",
    "group_positions",
    "masked_mean",
    "masked_quantiles",
    "per_position",
    "resolve_group_size",
    "split_positions",
]

TABLE_DTYPES = ("bfloat16", "float16", "float32")

LARGEST = (2 - 2**-7) * 2.0**126
"""1.7e38: the greatest bfloat16 whose double is finite, as the span of two levels has to be."""


def check_group_size(group_size: int | None) -> None:
    """Raises ValueError unless `group_size` is None or at least 1."""
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be None or at least 1, got {group_size}")


def check_table_dtype(table_dtype: str) -> None:
    """Raises ValueError unless tables can be stored in `table_dtype`."""
    if table_dtype not in TABLE_DTYPES:
        raise ValueError(f"table_dtype must be one of {TABLE_DTYPES}, got {show(table_dtype)}")


def coded_input(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    largest: float,
    *,
    keep_bfloat16: bool = False,
) -> tuple[Float[Array, "*lead V H"], Bool[Array, "*lead V H"]]:
    """The input of a quantizer in float32, and which valid elements are NaN or infinite.

    With `keep_bfloat16`, an input in bfloat16 stays so: `largest` has to be one of its numbers.

    Elements saturate at +-largest. Elements that are not valid or not finite become 0, so that they
    spoil no other group; the quantizer marks their own group as NaN.
    """
    kept = jnp.bfloat16 if keep_bfloat16 and x.dtype == jnp.bfloat16 else jnp.float32
    wide = x if x.dtype == jnp.float64 else x.astype(kept)
    finite = jnp.isfinite(wide)
    taken = valid[..., None]
    x = jnp.clip(jnp.where(taken & finite, wide, 0.0), -largest, largest).astype(kept)
    return x, taken & ~finite


def as_stored(table: Float[Array, "*shape"], table_dtype: str) -> Float[Array, "*shape"]:
    """The table rounded to `table_dtype`, also for readers in the same computation.

    It saturates at the dtype's greatest number and at `LARGEST`. Without the barrier XLA drops the
    rounding from f32 -> bf16 -> f32 on a GPU ("excess precision"): codes would be taken around
    other values than those that are stored.
    """
    largest = min(LARGEST, float(jnp.finfo(table_dtype).max))
    return jax.lax.optimization_barrier(jnp.clip(table, -largest, largest).astype(table_dtype))


def resolve_group_size(group_size: int | None, num_positions: int) -> int:
    """Positions of one group; None, or more than there are, means the whole segment."""
    return max(1, min(group_size or num_positions, num_positions))


def split_positions(
    x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"], group_size: int
) -> tuple[Float[Array, "*lead G H E"], Bool[Array, "*lead G H E"]]:
    """Puts the E = group_size positions of each group on the last axis.

    The last group is filled up with positions that are not valid.
    """
    x = jnp.swapaxes(group_positions(x, group_size), -1, -2)
    valid = jnp.swapaxes(group_positions(valid[..., None], group_size), -1, -2)
    return x, jnp.broadcast_to(valid, x.shape)


def group_positions(x: Shaped[Array, "*lead V C"], group_size: int) -> Shaped[Array, "*lead G E C"]:
    """Splits positions into groups of at most `group_size`, the last one padded with zeros."""
    *lead, length, channels = x.shape
    group_size = resolve_group_size(group_size, length)
    num_groups = -(-length // group_size)
    padding = [(0, 0)] * x.ndim
    padding[-2] = (0, num_groups * group_size - length)
    return jnp.pad(x, padding).reshape(*lead, num_groups, group_size, channels)


def per_position(
    table: Shaped[Array, "*lead G C"], group_size: int, num_positions: int
) -> Shaped[Array, "*lead V C"]:
    """Repeats each group's row of a table for each of its positions."""
    return jnp.repeat(table, group_size, axis=-2)[..., :num_positions, :]


def masked_mean(
    x: Float[Array, "*groups E"], valid: Bool[Array, "*groups E"]
) -> Float[Array, "*groups"]:
    """Mean of the valid elements; 0 where there are none."""
    count = jnp.maximum(valid.sum(-1), 1)
    return jnp.where(valid, x, 0.0).sum(-1) / count.astype(x.dtype)


def masked_quantiles(
    x: Float[Array, "*groups E"], valid: Bool[Array, "*groups E"], *fractions: float
) -> tuple[Float[Array, "*groups"], ...]:
    """Quantiles of the valid elements, linearly interpolated (numpy's default); 0 without any."""
    ordered = jnp.sort(jnp.where(valid, x, jnp.inf), axis=-1)
    count = valid.sum(-1)
    last = jnp.maximum(count - 1, 0)

    def element(index):
        return jnp.take_along_axis(ordered, index[..., None], axis=-1)[..., 0]

    def quantile(fraction):
        position = fraction * last.astype(jnp.float32)
        below = jnp.floor(position).astype(last.dtype)
        low, high = element(below), element(jnp.minimum(below + 1, last))
        between = low + (high - low) * (position - below.astype(jnp.float32))
        return jnp.where(count > 0, between, 0.0)

    return tuple(quantile(fraction) for fraction in fractions)
