"""Batches of token rows as a family's processor gives them, for tests of families."""

from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["padded_rows"]


def padded_rows(
    *rows: Iterable[int | Sequence[int]], side: str = "left", pad: int = 0
) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask` of rows of tokens; a sequence in a row is spliced in."""
    flat = [
        [t for part in row for t in ([part] if isinstance(part, int) else part)] for row in rows
    ]
    width = max(map(len, flat))
    ids, mask = np.full((len(flat), width), pad), np.zeros((len(flat), width), np.int64)
    for i, row in enumerate(flat):
        place = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
