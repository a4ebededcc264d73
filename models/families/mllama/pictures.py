"""Mllama's pictures against tokens: checks on the host, and where pictures lie."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from models.families.base import VisualInputs
from models.families.mllama.config import MllamaConfig
from models.families.mllama.model import TileLayout
from models.inputs.batch import PicturePlaces
from models.inputs.pixels import check_image_tokens, check_pixels
from vkq_jax.messages import show

__all__ = ["visual_inputs"]

_NAMES = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


def visual_inputs(
    config: MllamaConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """See `Family.visual_inputs`.

    Arrays are those of all pictures one after another ([images, tiles, ...]), or transformers' own
    ([sequences, images, tiles, ...]), where sequences with fewer pictures are padded.
    """
    token = config.image_token_id
    counts = (ids == token).sum(-1)
    if missing := [name for name in _NAMES if (name in arrays) != ("pixel_values" in arrays)]:
        raise ValueError(
            f"{', '.join(missing)}: the processor gives {', '.join(_NAMES)} together, got "
            f"{', '.join(name for name in _NAMES if name in arrays) or 'none'}"
        )
    if "pixel_values" not in arrays:
        check_image_tokens(token, int(counts.sum()), 0, 0)
        if arrays.get("cross_attention_mask", np.zeros(0)).any():
            raise ValueError("cross_attention_mask: expected pixel_values with it, got none")
        return VisualInputs()
    pixels, ratio, is_tile = _flat(config, counts, arrays)
    check_image_tokens(token, int(counts.sum()), len(pixels), len(pixels))
    if "cross_attention_mask" in arrays:
        _check_mask(ids == token, mask, counts, is_tile, arrays["cross_attention_mask"])
    layout = TileLayout(jnp.asarray(ratio), jnp.asarray(is_tile))
    return VisualInputs(pixels, layout, places=_places(config, counts, is_tile))


def _flat(
    config: MllamaConfig, counts: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, shapes and tiles of all pictures, one after another."""
    pixels, ratio, is_tile = (arrays[name] for name in _NAMES)
    tiles, side = config.vision.max_num_tiles, config.vision.image_size
    if pixels.ndim == 6 and ratio.shape[:1] == counts.shape:
        pixels, ratio, is_tile = _without_padding(counts, pixels, ratio, is_tile)
    shape = f"[images, {tiles}, 3, {side}, {side}]"
    pixels = check_pixels(pixels, (tiles, 3, side, side), shape)
    most, images = config.vision.num_aspect_ratios, len(pixels)
    valid = ratio.shape == (images,) and np.issubdtype(ratio.dtype, np.integer)
    if not valid or ((ratio < 1) | (ratio > most)).any():
        raise ValueError(
            f"aspect_ratio_ids: expected a number from 1 to {most} for each of {images} pictures, "
            f"got {ratio.dtype} {ratio.shape}"
        )
    if is_tile.shape != (images, tiles) or not np.isin(is_tile, (0, 1)).all():
        raise ValueError(
            f"aspect_ratio_mask: expected zeros and ones {(images, tiles)}, got {is_tile.dtype} "
            f"{is_tile.shape}"
        )
    if not is_tile[:, 0].all():
        raise ValueError("aspect_ratio_mask: expected 1 for the first tile of each picture")
    return pixels, ratio.astype(np.int32), is_tile.astype(bool)


def _without_padding(
    counts: np.ndarray, pixels: np.ndarray, ratio: np.ndarray, is_tile: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each sequence's own pictures, which have a shape, one sequence after another."""
    held = ratio > 0
    images = held.sum(-1)
    fits = pixels.shape[:2] == ratio.shape == is_tile.shape[:2]
    if not fits or (images != counts).any() or (np.sort(~held, axis=-1) != ~held).any():
        raise ValueError(
            f"aspect_ratio_ids: expected {show(counts.tolist())} pictures of the sequences, as "
            f"they have image tokens, padding (0) behind them, got {show(images.tolist())} in "
            f"shape {ratio.shape}"
        )
    return pixels[held], ratio[held], is_tile[held]


def _places(config: MllamaConfig, counts: np.ndarray, is_tile: np.ndarray) -> PicturePlaces:
    each = config.vision.tile_features
    size = config.vision.max_num_tiles * each
    kept_of = np.repeat(is_tile, each, axis=1)
    shape = len(counts), int(counts.max()), size
    row, kept = np.zeros(shape, np.int32), np.zeros(shape, bool)
    picture = np.full(shape, -1, np.int32)
    first = 0
    for i, count in enumerate(counts.tolist()):
        numbers = first + np.arange(count)[:, None]
        row[i, :count] = numbers * size + np.arange(size)
        picture[i, :count] = np.arange(count)[:, None]
        kept[i, :count] = kept_of[first : first + count]
        first += count
    return PicturePlaces(*(jnp.asarray(x.reshape(len(counts), -1)) for x in (row, picture, kept)))


def _check_mask(
    is_image: np.ndarray,
    mask: np.ndarray,
    counts: np.ndarray,
    is_tile: np.ndarray,
    given: np.ndarray,
) -> None:
    """Raises ValueError unless the mask is the one that follows from the image tokens."""
    shape = (*is_image.shape, int(counts.max()), is_tile.shape[1])
    expected, first = np.zeros(shape, bool), 0
    for i, count in enumerate(counts.tolist()):
        starts = np.flatnonzero(is_image[i])
        end = is_image.shape[1]
        for picture in reversed(range(count)):
            # Pictures side by side are seen up to the same token.
            if picture + 1 < count and starts[picture] + 1 < starts[picture + 1]:
                end = starts[picture + 1]
            expected[i, starts[picture] : end, picture] = is_tile[first + picture]
        first += count
    fits = given.shape == shape and (given.astype(bool) == expected)[mask].all()
    if not fits:
        raise ValueError(
            "cross_attention_mask: expected that of the real processor, where a token sees the "
            f"last picture before it, {shape}; got another one {given.shape}: leave it out"
        )
