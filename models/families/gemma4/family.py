"""Gemma 4 as a family: its processing, and its pictures against tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.base import Family, VisualInputs
from models.families.gemma4.config import Gemma4Config
from models.families.gemma4.model import Gemma4Model
from models.families.gemma4.naming import gemma4_names
from models.inputs.image_settings import check_patch_settings, check_whole_blocks
from models.inputs.pixels import check_image_tokens, check_pixels, token_runs
from models.inputs.processing import Processing
from models.vision.patch_grid import block_order, pack_frames

__all__ = ["FAMILY"]


def _visual_inputs(
    config: Gemma4Config, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    for token, name in config.refused:
        if token is not None and (ids == token).any():
            raise NotImplementedError(
                f"input_ids: {name} tokens (id {token}); supported: text and images"
            )
    visual, merge = ids == config.image_token_id, config.vision.merge
    types = arrays.get("mm_token_type_ids")
    if types is not None and (types.shape != ids.shape or (types != visual)[mask].any()):
        raise ValueError(
            f"mm_token_type_ids: expected {ids.shape}, 1 at image tokens (id "
            f"{config.image_token_id}) and 0 elsewhere; got {types.shape} with other numbers"
        )
    patches, sizes = _read_pictures(config, arrays)
    counts = [rows * columns // merge**2 for rows, columns in sizes]
    check_image_tokens(config.image_token_id, int(visual.sum()), len(sizes), sum(counts))
    if not sizes:
        return VisualInputs()
    pixels, layout = pack_frames(patches, sizes, np.repeat(np.arange(len(sizes)), counts), merge)
    group = token_runs(visual) if config.pictures_see_themselves else None
    return VisualInputs(pixels, layout, attention_group=group)


def _read_pictures(
    config: Gemma4Config, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Patches of all pictures in merge-block order, and rows and columns of each."""
    pixels, places = arrays.get("pixel_values"), arrays.get("image_position_ids")
    width, merge = config.vision.patch_width, config.vision.merge
    if (pixels is None) != (places is None):
        raise ValueError(
            "pixel_values, image_position_ids: the processor gives both together, got one of them"
        )
    if pixels is None or places is None:
        return np.zeros((0, width), np.float32), []
    pixels = check_pixels(pixels, (None, width), f"[images, patches, {width}]")
    most = config.vision.axis_table or 0
    if places.shape != (*pixels.shape[:2], 2) or not np.issubdtype(places.dtype, np.integer):
        raise ValueError(
            f"image_position_ids: expected integers {[*pixels.shape[:2], 2]}, got {places.dtype} "
            f"{places.shape}"
        )
    found, sizes = [], []
    for patches, own in zip(pixels, places, strict=True):
        columns, rows = (own.max(0) + 1).tolist()
        grid = np.indices((rows, columns))[::-1].reshape(2, -1).T if min(rows, columns) else own
        held = len(grid) <= len(own) and (own[: len(grid)] == grid).all()
        if not held or (own[len(grid) :] != -1).any() or rows % merge or columns % merge:
            raise ValueError(
                "image_position_ids: expected column and row of each patch, row by row, both "
                f"numbers of a picture multiples of {merge}, and -1 behind them"
            )
        if max(rows, columns) > most:
            raise ValueError(
                f"image_position_ids: expected numbers below position_embedding_size={most}, got "
                f"{max(rows, columns) - 1}"
            )
        found.append(patches[block_order(rows, columns, merge)])
        sizes.append((rows, columns))
    return np.concatenate(found), sizes


class _Processing(Processing):
    """Each picture resized to whole blocks of patches, its tokens between two of their own."""

    def check(self, config: Gemma4Config, image_processor: Any) -> None:
        """See `Processing.check`: patches and blocks are those of the tower."""
        vision = config.vision
        check_patch_settings(
            image_processor, patch_size=vision.patch_size, pooling_kernel_size=vision.merge
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
    array_names=("pixel_values", "image_position_ids", "mm_token_type_ids"),
    unused_names=("num_soft_tokens_per_image",),
    visual_inputs=_visual_inputs,
    processing=_Processing,
)
