"""Positions of prompts with M-RoPE: time, row and column of each token.

Text counts on all three axes alike. A picture at position p has time p, rows p + i and columns
p + j over the grid of its visual tokens, and the text after it goes on at p + max(rows, columns).
Source: Qwen2-VL, arXiv 2409.12191, section 2.1, as transformers computes it.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from vkq_jax.array_types import Int32

__all__ = ["Span", "mrope_positions"]


class Span(NamedTuple):
    """The visual tokens of one picture or clip.

    Attributes:
        times: of each frame, from 0.
        rows, columns: visual tokens of a frame.
    """

    times: tuple[int, ...]
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Visual tokens of the span."""
        return len(self.times) * self.rows * self.columns

    def positions(self) -> np.ndarray:
        """Time, row and column of each token, from 0: [tokens, 3]."""
        axes = (np.asarray(self.times), np.arange(self.rows), np.arange(self.columns))
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def mrope_positions(
    ids: np.ndarray, mask: np.ndarray, spans: Mapping[int, list[Span]]
) -> Int32[np.ndarray, "B T 3"]:
    """The positions of a batch, from 0 at each prompt's first token.

    Args:
        ids: tokens [B, T].
        mask: False where they are padding.
        spans: for each visual token's id its spans in the order of their tokens in the batch, as
            many as the tokens need.

    Raises:
        ValueError: the tokens of a span do not lie side by side.
    """
    rest = {token: iter(each) for token, each in spans.items()}
    positions = np.zeros((*ids.shape, 3), np.int32)
    for row, (tokens, real) in enumerate(zip(ids, mask, strict=True)):
        parts, start = [np.zeros((0, 3), np.int64)], 0
        for token, count in _runs(tokens[real], rest):
            if token is None:
                parts.append(start + np.arange(count)[:, None].repeat(3, 1))
                start += count
                continue
            while count > 0:
                span = next(rest[token])
                if span.tokens > count:
                    raise ValueError(
                        f"input_ids: expected {span.tokens} tokens {token} side by side for a "
                        f"picture in row {row}, got {count}"
                    )
                parts.append(start + span.positions())
                start += max(span.rows, span.columns)
                count -= span.tokens
        positions[row, real] = np.concatenate(parts)
    return positions


def _runs(tokens: np.ndarray, visual: Mapping[int, object]) -> Iterator[tuple[int | None, int]]:
    """Runs of equal visual tokens and of text: the token, None for text, and how many."""
    kinds = np.where(np.isin(tokens, list(visual)), tokens, -1)
    starts = np.flatnonzero(np.diff(kinds, prepend=-2))
    for start, stop in zip(starts, [*starts[1:], len(kinds)], strict=True):
        kind = int(kinds[start])
        yield None if kind < 0 else kind, int(stop - start)
