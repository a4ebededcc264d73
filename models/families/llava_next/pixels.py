"""Checks of pictures as the processors of LLaVA-NeXT and its kin give them."""

from collections.abc import Sequence

import numpy as np

from models.families.llava_next.config import LlavaNextConfig
from models.inputs.pixels import check_pixels

__all__ = ["picture_tiles"]


def picture_tiles(
    config: LlavaNextConfig,
    pixels: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    counts: Sequence[int],
) -> np.ndarray:
    """The tiles of all pictures, one after another, [tiles, 3, size, size] in float32.

    Args:
        config: of the model.
        pixels: [images, most tiles, 3, size, size], rows of fewer tiles padded, or the result.
        sizes: of the pictures. counts: of their tiles.

    Raises:
        ValueError: a wrong shape or dtype, values that are not finite, or fewer tiles than the
            pictures' sizes make.
    """
    side = config.vision.image_size
    if pixels.ndim == 5:
        pixels = check_pixels(pixels, (None, 3, side, side), f"[images, tiles, 3, {side}, {side}]")
        fits = len(pixels) == len(counts) and pixels.shape[1] >= max(counts)
    else:
        pixels = check_pixels(pixels, (3, side, side), f"[tiles, 3, {side}, {side}]")
        fits = len(pixels) == sum(counts)
    if not fits:
        raise ValueError(
            f"pixel_values: {len(sizes)} pictures of image_sizes have {sum(counts)} tiles, at most "
            f"{max(counts)} each, got shape {pixels.shape}"
        )
    if pixels.ndim == 4:
        return pixels
    return np.concatenate([tiles[:count] for tiles, count in zip(pixels, counts, strict=True)])
