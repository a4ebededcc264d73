"""Gemma 4 as a family: its processing, and its pictures against tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.base import Family, VisualInputs
from models.families.gemma4.clips import Gemma4ClipProcessing
from models.families.gemma4.config import Gemma4Config
from models.families.gemma4.model import Gemma4Model
from models.families.gemma4.naming import gemma4_names
from models.inputs.image_settings import check_patch_settings, check_whole_blocks
from models.inputs.pixels import check_image_tokens, check_pixels, token_runs
from models.inputs.processing import Processing
from models.vision.patch_grid import block_order, pack_frames

__all__ = ["ARRAYS", "FAMILY", "UNUSED_ARRAYS", "Gemma4Processing", "visual_inputs"]

ARRAYS = (
    *("pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids"),
    *("num_frames_per_video", "mm_token_type_ids"),
)
UNUSED_ARRAYS = ("num_soft_tokens_per_image", "num_soft_tokens_per_video")


def visual_inputs(
    config: Gemma4Config, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """See `Family.visual_inputs`."""
    if config.audio_token_id is not None and (ids == config.audio_token_id).any():
        raise NotImplementedError(
            f"input_ids: audio tokens (id {config.audio_token_id}); supported: text, images, video"
        )
    _check_types(config, ids, mask, arrays.get("mm_token_type_ids"))
    merge, visual = config.vision.merge, np.isin(ids, config.visual_token_ids)
    kinds = [
        ("image", config.image_token_id, "pixel_values", "image_position_ids"),
        ("video", config.video_token_id, "pixel_values_videos", "video_position_ids"),
    ]
    patches, sizes, frames = [], [], np.full(visual.sum(), -1)
    for kind, token, *names in kinds:
        found, grids = _read_pictures(config, arrays, *names)
        own = np.repeat(
            len(sizes) + np.arange(len(grids)), [h * w // merge**2 for h, w in grids]
        ).astype(int)
        tokens = ids[visual] == token
        pictures = len(grids)
        if kind == "video":
            pictures = _check_clips(arrays.get("num_frames_per_video"), len(grids))
        check_image_tokens(token or -1, int(tokens.sum()), pictures, len(own), kind=kind)
        frames[tokens] = own
        patches.append(found)
        sizes += grids
    if not sizes:
        return VisualInputs()
    pixels, layout = pack_frames(np.concatenate(patches), sizes, frames, merge)
    group = token_runs(visual) if config.pictures_see_themselves else None
    return VisualInputs(pixels, layout, attention_group=group)


def _check_types(
    config: Gemma4Config, ids: np.ndarray, mask: np.ndarray, types: np.ndarray | None
) -> None:
    """Checks that types say what the ids say: 1 at tokens of pictures, 2 at those of clips."""
    if types is None:
        return
    image, video = config.image_token_id, config.video_token_id
    expected = np.where(ids == image, 1, np.where(ids == video, 2, 0))
    if types.shape != ids.shape or (types != expected)[mask].any():
        raise ValueError(
            f"mm_token_type_ids: expected {ids.shape}, 1 at image tokens (id {image}), 2 at video "
            f"tokens (id {video}) and 0 elsewhere; got {types.shape} with other numbers"
        )


def _check_clips(counts: np.ndarray | None, frames: int) -> int:
    """How many clips there are; raises ValueError for other numbers of frames than there are."""
    if counts is None:
        return int(frames > 0)
    numbers = counts.ndim == 1 and np.issubdtype(counts.dtype, np.integer)
    if not numbers or (counts < 1).any() or counts.sum() != frames:
        raise ValueError(
            f"num_frames_per_video: expected frames of each clip, {frames} together, got "
            f"{counts.dtype} {counts.shape} of {counts.sum() if numbers else 'no numbers'}"
        )
    return len(counts)


def _read_pictures(
    config: Gemma4Config, arrays: Mapping[str, np.ndarray], pixels_name: str, places_name: str
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Patches of all pictures or frames in merge-block order, and rows and columns of each."""
    pixels, places = arrays.get(pixels_name), arrays.get(places_name)
    width, merge = config.vision.patch_width, config.vision.merge
    if (pixels is None) != (places is None):
        raise ValueError(
            f"{pixels_name}, {places_name}: the processor gives both together, got one of them"
        )
    if pixels is None or places is None:
        return np.zeros((0, width), np.float32), []
    if pixels.ndim == places.ndim == 4:  # clips before transformers 5.24, frames on an axis apart
        pixels, places = (x.reshape(-1, *x.shape[2:]) for x in (pixels, places))
    pixels = check_pixels(pixels, (None, width), f"[images, patches, {width}]", name=pixels_name)
    most = config.vision.axis_table or 0
    if places.shape != (*pixels.shape[:2], 2) or not np.issubdtype(places.dtype, np.integer):
        raise ValueError(
            f"{places_name}: expected integers {[*pixels.shape[:2], 2]}, got {places.dtype} "
            f"{places.shape}"
        )
    found, sizes = [], []
    for patches, own in zip(pixels, places, strict=True):
        columns, rows = (own.max(0) + 1).tolist()
        grid = np.indices((rows, columns))[::-1].reshape(2, -1).T if min(rows, columns) else own
        held = len(grid) <= len(own) and (own[: len(grid)] == grid).all()
        if not held or (own[len(grid) :] != -1).any() or rows % merge or columns % merge:
            raise ValueError(
                f"{places_name}: expected column and row of each patch, row by row, both "
                f"numbers of a picture multiples of {merge}, and -1 behind them"
            )
        if max(rows, columns) > most:
            raise ValueError(
                f"{places_name}: expected numbers below {most}, the rows of the table of "
                f"positions, got {max(rows, columns) - 1}"
            )
        found.append(patches[block_order(rows, columns, merge)])
        sizes.append((rows, columns))
    return np.concatenate(found), sizes


class Gemma4Processing(Processing):
    """Each picture resized to whole blocks of patches, its tokens between two of their own."""

    def clips(self, config: Gemma4Config) -> Gemma4ClipProcessing | None:
        """See `Processing.clips`."""
        return None if config.video_token_id is None else Gemma4ClipProcessing()

    def check(self, config: Gemma4Config, image_processor: Any) -> None:
        """See `Processing.check`: patches and blocks are those of the tower."""
        vision = config.vision
        check_patch_settings(
            image_processor, patch_size=vision.patch_size, pooling_kernel_size=config.pooling
        )

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """See `Processing.check_picture`; a resized picture has few patches, whatever its size."""
        factor = image_processor.patch_size * image_processor.pooling_kernel_size
        check_whole_blocks(image_processor, picture, factor)

    def preprocess(
        self,
        config: Gemma4Config,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        output = self.run(image_processor, pictures)
        counts = output.pop("num_soft_tokens_per_image").tolist()
        begin, end = tokenizer.convert_ids_to_tokens([config.begin_image_id, config.end_image_id])
        return output, [f"{begin}{placeholder * count}{end}" for count in counts]


FAMILY = Family(
    read_config=Gemma4Config.from_hf,
    build=Gemma4Model,
    weights=gemma4_names,
    array_names=ARRAYS,
    unused_names=UNUSED_ARRAYS,
    visual_inputs=visual_inputs,
    processing=Gemma4Processing,
)
