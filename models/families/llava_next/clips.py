"""Clips beside pictures, for kin of LLaVA-NeXT that take both; on the host."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.families.llava_next.config import LlavaNextConfig
from models.families.llava_next.pixels import picture_tiles
from models.inputs.clip_processing import ClipProcessing, frame_pixels
from models.inputs.clips import ReadClip
from models.inputs.pixels import check_image_tokens, check_pixels
from vkq_jax.messages import show

__all__ = ["CLIP_LENGTHS", "LlavaClipProcessing", "order_of_rows", "tiles_and_clips"]


CLIP_LENGTHS = "video_lengths"
"""The array beside `pixel_values_videos` where clips have different numbers of frames."""


def tiles_and_clips(
    config: LlavaNextConfig,
    arrays: Mapping[str, np.ndarray],
    sizes: Sequence[tuple[int, int]],
    counts: Sequence[int],
) -> tuple[list[np.ndarray], list[int]]:
    """Tiles of all pictures, then frames of all clips, as lists of images; and frames of each clip.

    Args:
        config: of the model.
        arrays: the processor's.
        sizes, counts: height, width and number of tiles of each picture.

    Raises:
        ValueError: a wrong shape or dtype, or values that are not finite.
    """
    tiles = [picture_tiles(config, arrays["pixel_values"], sizes, counts)] if sizes else []
    frames, lengths = _check_clips(config, arrays)
    return ([*tiles, frames] if lengths else tiles), lengths


def _check_clips(
    config: LlavaNextConfig, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, list[int]]:
    """All frames one after another [frames, 3, size, size] in float32, and how many each clip has.

    Raises:
        ValueError: a wrong shape or dtype, or values that are not finite.
    """
    name, side = "pixel_values_videos", config.vision.image_size
    frames, lengths = arrays.get(name), arrays.get(CLIP_LENGTHS)
    if frames is None:
        return np.zeros((0, 3, side, side), np.float32), []
    if lengths is None:
        described = f"[clips, frames, 3, {side}, {side}]"
        frames = check_pixels(frames, (None, 3, side, side), described, name=name)
        return frames.reshape(-1, 3, side, side), [frames.shape[1]] * len(frames)
    frames = check_pixels(frames, (3, side, side), f"[frames, 3, {side}, {side}]", name=name)
    integers = np.issubdtype(lengths.dtype, np.integer) and lengths.ndim == 1
    if not integers or (lengths < 1).any() or lengths.sum() != len(frames):
        raise ValueError(
            f"{CLIP_LENGTHS}: expected how many of the {len(frames)} frames each clip has, got "
            f"{lengths.dtype} {show(lengths.tolist())}"
        )
    return frames, lengths.tolist()


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


class LlavaClipProcessing(ClipProcessing):
    """Frames of the tower's size; one run of video tokens a clip."""

    def tokens(self, config: Any, frames: int) -> int:
        """Visual tokens of a clip."""
        raise NotImplementedError

    def preprocess(
        self,
        config: Any,
        settings: Any,
        clips: Sequence[ReadClip],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `ClipProcessing.preprocess`."""
        pixels = [frame_pixels(settings, clip.frames) for clip in clips]
        texts = [placeholder * self.tokens(config, len(each)) for each in pixels]
        lengths = np.array([len(each) for each in pixels])
        return {"pixel_values_videos": np.concatenate(pixels), CLIP_LENGTHS: lengths}, texts
