"""Where visual and text tokens lie in a prompt."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vkq_jax.cache.visual import visual_spans

__all__ = ["Segment", "read_layout"]


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive positions of one kind: [start, start + length).

    Attributes:
        text: what text tokens say, one string for each; None for visual tokens.
    """

    start: int
    length: int
    text: tuple[str, ...] | None

    @property
    def stop(self) -> int:
        """First position after the segment."""
        return self.start + self.length

    @property
    def is_visual(self) -> bool:
        """Whether these are visual tokens."""
        return self.text is None


def read_layout(
    input_ids: np.ndarray,
    visual_token_ids: int | tuple[int, ...],
    decode: Callable[[Sequence[int]], list[str]],
) -> list[Segment]:
    """The segments of one prompt, in order and without gaps.

    Args:
        input_ids: integers [T], without padding.
        visual_token_ids: tokens whose positions are visual.
        decode: the strings of some token ids, one for each.
    """
    (spans,) = visual_spans(input_ids[None], visual_token_ids)
    segments, position = [], 0
    for start, stop in [(s.start, s.stop) for s in spans] + [(len(input_ids), len(input_ids))]:
        if start > position:
            ids = input_ids[position:start].tolist()
            segments.append(Segment(position, start - position, tuple(decode(ids))))
        if stop > start:
            segments.append(Segment(start, stop - start, None))
        position = stop
    return segments
