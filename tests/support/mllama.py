"""Batches of Mllama as its processor gives them, for tests of the parity group."""

from collections.abc import Mapping

import numpy as np

__all__ = ["with_mask"]


def with_mask(
    rows: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray], image: int
) -> dict[str, np.ndarray]:
    """Rows and pictures with the processor's mask, made by transformers; `image` is the token."""
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(row.tolist(), image) for row in rows["input_ids"]],
        num_tiles=[
            [int(tiles.sum()) for tiles, shape in zip(row, shapes, strict=True) if shape]
            for row, shapes in zip(
                images["aspect_ratio_mask"], images["aspect_ratio_ids"], strict=True
            )
        ],
        max_num_tiles=images["aspect_ratio_mask"].shape[-1],
        length=rows["input_ids"].shape[1],
    )
    return {**rows, **images, "cross_attention_mask": mask}
