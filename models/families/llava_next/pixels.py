"""Checks of pictures and their sizes as the processors of LLaVA-NeXT and its kin give them."""

from collections.abc import Mapping, Sequence

import numpy as np

from models.families.llava_next.config import LlavaNextConfig
from models.inputs.pixels import check_pixels

__all__ = ["check_sizes", "picture_tiles"]


def check_sizes(arrays: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    """Height and width of each picture before it was cut.

    Raises:
        ValueError: `image_sizes` is missing, not wanted, or not [images, 2] with numbers above 0.
    """
    sizes = arrays.get("image_sizes")
    if (sizes is None) != (arrays.get("pixel_values") is None):
        given, other = ("image_sizes", "pixel_values")[:: -1 if sizes is None else 1]
        raise ValueError(f"{other}: the processor gives it with {given}, got {given} alone")
    if sizes is None:
        return []
    integers = np.issubdtype(sizes.dtype, np.integer)
    if not integers or sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes) or sizes.min() < 1:
        raise ValueError(
            "image_sizes: expected heights and widths of 1 or more, integers [images, 2], got "
            f"{sizes.dtype} {sizes.shape}"
        )
    return [(int(height), int(width)) for height, width in sizes]


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
