"""Random pictures, for tests of families."""

import numpy as np
from PIL import Image

__all__ = ["random_picture"]


def random_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
