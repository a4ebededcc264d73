"""Tiles of a batch and their patches, on the host."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from models.families.base import VisualInputs
from models.families.idefics3.config import Idefics3Config
from models.inputs.pixels import check_image_tokens, check_pixels, pad_to_bucket
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.pytree import frozen_pytree

__all__ = ["TilePatches", "visual_inputs"]

_SHAPES = "[B, tiles, 3, size, size] or [tiles, 3, size, size]"


@frozen_pytree
class TilePatches:
    """Where the patches of tiles lie, for tiles that are not all full and of the tower's size.

    Attributes:
        positions: the row of the table of positions that each patch takes.
        visible: patches that attention sees; None: all.
    """

    positions: Int32[Array, "tiles patches"]
    visible: Bool[Array, "tiles patches"] | None


def visual_inputs(
    config: Idefics3Config, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """See `models.families.base.Family.visual_inputs`."""
    tiles, shown = _read_tiles(config, arrays)
    count = 0 if tiles is None else len(tiles)
    size = config.vision.image_size if tiles is None else tiles.shape[-1]
    tokens = int((ids == config.image_token_id).sum())
    needed = count and count * config.tile_tokens(size)
    check_image_tokens(config.image_token_id, tokens, count, needed)
    if tiles is None:
        return VisualInputs()
    return VisualInputs(pad_to_bucket(tiles), _layout(config, tiles, shown))


def _read_tiles(
    config: Idefics3Config, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """All tiles one after another [tiles, 3, size, size], and which of their pixels count.

    Rows with fewer tiles than others are padded with tiles of zeros, which are left out here.
    """
    pixels, shown = arrays.get("pixel_values"), arrays.get("pixel_attention_mask")
    if pixels is None:
        if shown is not None:
            raise ValueError("pixel_values is missing: pixel_attention_mask needs it")
        return None, None
    inner = (None, 3, None, None) if pixels.ndim == 5 else (3, None, None)
    pixels = check_pixels(pixels, inner, _SHAPES)
    *lead, _, height, width = pixels.shape
    if height != width:
        raise ValueError(f"pixel_values: expected squares {_SHAPES}, got shape {pixels.shape}")
    config.tile_tokens(width)
    tiles = pixels.reshape(-1, 3, height, width)
    real = tiles.any(axis=(1, 2, 3)) | (len(lead) == 1)
    if shown is None:
        return (tiles[real] if real.any() else None), None
    if shown.shape != (*lead, height, width) or not np.isin(shown, (0, 1)).all():
        raise ValueError(
            f"pixel_attention_mask: expected zeros and ones {(*lead, height, width)}, got "
            f"{shown.dtype} {shown.shape}"
        )
    shown = shown.reshape(-1, height, width).astype(bool)
    real |= shown.any(axis=(1, 2))
    if not shown[real, 0, 0].all():
        raise ValueError(
            "pixel_attention_mask: expected 1 at the top left pixel of each tile that is not "
            "padding: a picture is padded at its bottom and right"
        )
    return (tiles[real], shown[real]) if real.any() else (None, None)


def _layout(
    config: Idefics3Config, tiles: np.ndarray, shown: np.ndarray | None
) -> TilePatches | None:
    """None where all tiles are full and of the tower's size.

    The table of positions is stretched over the patches that count: row i of h takes row
    i * n // h of the n of the table. transformers computes this in floating point and lands one
    row before that at a few sides (19, 25, 29, 31 and further ones), none of a published model.
    """
    patch, table = config.vision.patch_size, config.vision.side
    side = tiles.shape[-1] // patch
    visible = np.ones((len(tiles), side, side), bool)
    if shown is not None:
        cut = shown[:, : side * patch, : side * patch]
        visible = cut.reshape(-1, side, patch, side, patch).any(axis=(2, 4))
    if side == table and visible.all():
        return None
    places = np.arange(side)
    rows, columns = (
        np.minimum(places * table // visible.take(0, axis).sum(-1, keepdims=True), table - 1)
        for axis in (2, 1)
    )
    positions = np.where(visible, rows[:, :, None] * table + columns[:, None], 0)
    visible = visible.reshape(len(tiles), -1)
    return TilePatches(
        jnp.asarray(pad_to_bucket(positions.reshape(visible.shape)), jnp.int32),
        None if visible.all() else jnp.asarray(~pad_to_bucket(~visible)),
    )
