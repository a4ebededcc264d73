"""Mistral Small 3 and Pixtral as a family: names of weights, pictures against tokens."""

from collections.abc import Mapping, Sequence

import numpy as np

from models.checkpoints.naming import WeightNames
from models.families.base import Family, VisualInputs
from models.families.llava.naming import llava_names
from models.families.mistral3.config import Mistral3Config
from models.families.mistral3.model import Mistral3Model
from models.families.mistral3.processing import PixtralProcessing
from models.inputs.pixels import check_image_sizes, check_image_tokens, check_pixels
from models.vision.patch_grid import cut_patches, pack_frames
from models.vision.pixtral_weights import pixtral_names

__all__ = ["FAMILY", "cut_pictures"]

_MERGING_LAYER = "multi_modal_projector.patch_merger.merging_layer."


def _weights(config: Mistral3Config) -> WeightNames:
    return llava_names(
        config,
        tower=pixtral_names,
        rules=((rf"(model\.)?{_MERGING_LAYER}", "projector.merging_layer."),),
        published=((r"projector\.merging_layer\.", _MERGING_LAYER),),
    )


def _visual_inputs(
    config: Mistral3Config, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """See `models.families.base.Family.visual_inputs`."""
    sizes = check_image_sizes(arrays)
    grids = [_grid(config, *size) for size in sizes]
    patch, merge = config.vision.patch_size, config.vision.merge
    patches = cut_pictures(arrays["pixel_values"], sizes, grids, patch, merge) if sizes else None
    blocks = [rows * columns // merge**2 for rows, columns in grids]
    tokens = int((ids == config.image_token_id).sum())
    check_image_tokens(config.image_token_id, tokens, len(sizes), sum(blocks))
    if patches is None:
        return VisualInputs()
    frames = np.repeat(np.arange(len(grids)), blocks)
    return VisualInputs(*pack_frames(patches, grids, frames, merge))


def _grid(config: Mistral3Config, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of a picture; as in transformers, without a rim that fills none.

    Raises:
        ValueError: there is none, or they do not make whole blocks.
    """
    rows, columns = (side // config.vision.patch_size for side in (height, width))
    if not rows * columns or rows % config.vision.merge or columns % config.vision.merge:
        raise ValueError(
            f"image_sizes: expected multiples of the {config.block_size} pixels that become one "
            f"visual token, got {[height, width]}"
        )
    return rows, columns


def cut_pictures(
    pixels: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    grids: Sequence[tuple[int, int]],
    patch: int,
    merge: int,
) -> np.ndarray:
    """Patches of all pictures [patches, 3 * patch**2] in float32, as `cut_patches` orders them.

    Args:
        pixels: pictures, padded to one size.
        sizes: height and width of each. grids: its rows and columns of patches.
        patch: pixels of a patch's side. merge: patches of a block's side.

    Raises:
        ValueError: the pictures do not have the sizes that come with them.
    """
    pixels = check_pixels(pixels, (3, None, None), "[images, 3, height, width]")
    height, width = (max(each) for each in zip(*sizes, strict=True))
    if len(pixels) != len(sizes) or pixels.shape[2] < height or pixels.shape[3] < width:
        raise ValueError(
            f"pixel_values: expected {len(sizes)} pictures of at least {height} x {width} pixels, "
            f"as image_sizes has them, got shape {pixels.shape}"
        )
    patches = [
        cut_patches(each[:, : rows * patch, : columns * patch], patch, merge)
        for each, (rows, columns) in zip(pixels, grids, strict=True)
    ]
    return np.concatenate(patches)


FAMILY = Family(
    read_config=Mistral3Config.from_hf,
    build=Mistral3Model,
    weights=_weights,
    array_names=("pixel_values", "image_sizes"),
    visual_inputs=_visual_inputs,
    processing=PixtralProcessing,
)
