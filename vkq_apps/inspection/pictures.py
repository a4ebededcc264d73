"""Pictures as the model sees them, and attention laid out over their patches."""

import numpy as np

from models.vision.vit import VitConfig

__all__ = ["patch_maps", "seen_pictures"]


def seen_pictures(
    pixel_values: np.ndarray, mean: np.ndarray, std: np.ndarray, vision: VitConfig
) -> np.ndarray:
    """Undoes the processor's normalization.

    Args:
        pixel_values: floating [images, 3, size, size].
        mean, std: of the processor, one for each of the 3 colours.
        vision: tells how much of a picture its patches cover.

    Returns:
        uint8 [images, side, side, 3], a rim that fills no patch left out.
    """
    side = vision.side * vision.patch_size
    pixels = np.moveaxis(pixel_values[..., :side, :side], 1, -1).astype(np.float32)
    pixels = pixels * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def patch_maps(weights: np.ndarray, vision: VitConfig) -> np.ndarray:
    """Weights of visual tokens over the patch grid of each picture.

    Args:
        weights: [..., V], V the features of one or several pictures.
        vision: of the model. A class token, where it is kept, lies on no patch and is left out.

    Returns:
        [..., images, rows, columns]
    """
    side = vision.side
    weights = weights.reshape(*weights.shape[:-1], -1, vision.num_features)
    patches = weights[..., vision.num_features - vision.num_patches :]
    return patches.reshape(*patches.shape[:-1], side, side)
