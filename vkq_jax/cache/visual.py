"""Where the visual tokens are: always from the token ids, never from a fixed prompt length."""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.messages import show
from vkq_jax.validation import as_items

__all__ = ["VisualSpan", "left_pack", "visual_mask", "visual_spans"]


@dataclasses.dataclass(frozen=True)
class VisualSpan:
    """A run of consecutive visual positions of one sequence: [start, start + length).

    Attributes:
        start: first position.
        length: number of positions.
    """

    start: int
    length: int

    @property
    def stop(self) -> int:
        """First position after the span."""
        return self.start + self.length


@checked
def visual_mask(
    input_ids: Int32[Array, "*lead T"], visual_token_ids: int | tuple[int, ...]
) -> Bool[Array, "*lead T"]:
    """True where a token is one of the model's image or video tokens.

    Args:
        input_ids: token ids.
        visual_token_ids: ids that stand for visual tokens.

    Raises:
        ValueError: ids that are no integers of 32 bits.
    """
    ids = visual_token_ids if isinstance(visual_token_ids, tuple) else (visual_token_ids,)
    for token in ids:
        if not -(2**31) <= token < 2**31:
            raise ValueError(f"visual_token_ids: expected integers of 32 bits, got {show(token)}")
    mask = jnp.zeros(input_ids.shape, bool)
    for token in ids:
        mask = mask | (input_ids == jnp.asarray(token, input_ids.dtype))
    return mask


def visual_spans(
    input_ids: np.ndarray, visual_token_ids: int | tuple[int, ...]
) -> list[list[VisualSpan]]:
    """The runs of visual tokens of each sequence, in order; computed on the host.

    Args:
        input_ids: token ids [B, T], or [T] of one sequence.
        visual_token_ids: ids that stand for visual tokens.

    Raises:
        ValueError: ids that are no integers, or of another number of axes.
    """
    tokens = as_items(visual_token_ids)
    try:
        ids = np.asarray(input_ids)
        visual = np.asarray([visual_token_ids] if tokens is None else tokens, np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        got = f"{show(input_ids)} and {show(visual_token_ids)}"
        raise ValueError(f"input_ids, visual_token_ids: expected integers, got {got}") from error
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"input_ids: expected integers [B, T] or [T], got {show(ids)}")
    mask = np.isin(np.atleast_2d(ids), visual)
    return [list(_runs(row)) for row in mask]


def left_pack(
    mask: Bool[Array, "B T"], capacity: int
) -> tuple[Int32[Array, "B C"], Bool[Array, "B C"]]:
    """Positions where `mask` holds, moved to the front of `capacity` slots, in order.

    Returns:
        index: for each slot the position it takes, 0 where there is none.
        valid: which slots are taken. `capacity` must be at least the largest count of a row.
    """
    # A stable sort puts the wanted positions first and keeps their order.
    order = jnp.argsort(~mask, axis=-1, stable=True)[:, :capacity].astype(jnp.int32)
    order = jnp.pad(order, ((0, 0), (0, capacity - order.shape[1])))
    count = mask.sum(-1, dtype=jnp.int32)
    valid = jnp.arange(capacity, dtype=jnp.int32)[None] < count[:, None]
    return jnp.where(valid, order, 0), valid


def _runs(row: np.ndarray) -> Iterator[VisualSpan]:
    edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield VisualSpan(int(start), int(stop - start))
