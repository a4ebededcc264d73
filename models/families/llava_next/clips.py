"""Clips beside pictures, for kin of LLaVA-NeXT that take both; on the host."""

from collections.abc import Mapping, Sequence

import numpy as np

from models.families.llava_next.config import LlavaNextConfig
from models.families.llava_next.pixels import picture_tiles
from models.inputs.pixels import check_image_tokens, check_pixels

__all__ = ["order_of_rows", "tiles_and_clips"]


def tiles_and_clips(
    config: LlavaNextConfig,
    arrays: Mapping[str, np.ndarray],
    sizes: Sequence[tuple[int, int]],
    counts: Sequence[int],
) -> tuple[list[np.ndarray], np.ndarray]:
    """Tiles of all pictures, then frames of all clips, as lists of images; and the clips.

    Args:
        config: of the model.
        arrays: the processor's.
        sizes, counts: height, width and number of tiles of each picture.

    Raises:
        ValueError: a wrong shape or dtype, or values that are not finite.
    """
    tiles = [picture_tiles(config, arrays["pixel_values"], sizes, counts)] if sizes else []
    clips = _check_clips(config, arrays.get("pixel_values_videos"))
    if clips.size:
        tiles.append(clips.reshape(-1, *clips.shape[2:]))
    return tiles, clips


def _check_clips(config: LlavaNextConfig, clips: np.ndarray | None) -> np.ndarray:
    """`pixel_values_videos` [clips, frames, 3, size, size] in float32; none without any.

    Raises:
        ValueError: a wrong shape or dtype, or values that are not finite.
    """
    side = config.vision.image_size
    if clips is None:
        return np.zeros((0, 1, 3, side, side), np.float32)
    return check_pixels(
        clips,
        (None, 3, side, side),
        f"[clips, frames, 3, {side}, {side}]",
        name="pixel_values_videos",
    )


def order_of_rows(
    config: LlavaNextConfig, ids: np.ndarray, pictures: Sequence[int], videos: Sequence[int]
) -> np.ndarray:
    """The row that each visual token of the batch takes, of those of all pictures, then all clips.

    Args:
        config: of the model.
        ids: tokens [B, T].
        pictures, videos: how many tokens each picture and each clip has.

    Raises:
        ValueError: there are more or fewer of their tokens.
    """
    is_image, is_video = ids.ravel() == config.image_token_id, ids.ravel() == config.video_token_id
    for token, given, counts, kind in (
        (config.image_token_id, is_image, pictures, "image"),
        (config.video_token_id or 0, is_video, videos, "video"),
    ):
        check_image_tokens(token, int(given.sum()), len(counts), sum(counts), kind=kind)
    order = np.empty(is_image.sum() + is_video.sum(), int)
    of_video = is_video[is_image | is_video]
    order[~of_video] = np.arange(is_image.sum())
    order[of_video] = is_image.sum() + np.arange(is_video.sum())
    return order
