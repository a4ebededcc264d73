"""PaddleOCR-VL as a family: its module, names of weights, pictures against tokens."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.checkpoints.naming import WeightNames
from models.checkpoints.sources import Layout, Size, Source
from models.families.any_grid import AnyGridModel
from models.families.base import Family, VisualInputs
from models.families.llava.naming import llava_names
from models.families.paddleocr_vl.config import PaddleOcrVLConfig
from models.families.qwen_vl.processing import QwenVLProcessing
from models.families.qwen_vl.visual_inputs import visual_inputs
from models.layers.linear import Maker
from models.layers.norms import LayerNorm
from models.vision.grid_tower import GridConfig
from models.vision.patch_grid import block_order
from models.vision.projectors import PatchMerger
from models.vision.tower_names import TowerNames

__all__ = ["FAMILY"]

_TABLE, _PATCHES = "vision.position_embedding.weight", "vision.patch_embedding.weight"
# Names in files of the Hub, in transformers' modules, and here.
_PARTS = (
    ("visual.vision_model.embeddings.patch_embedding.", None, "vision.patch_embedding."),
    ("visual.vision_model.embeddings.position_embedding.", None, "vision.position_embedding."),
    ("visual.vision_model.post_layernorm.", None, "vision.post_norm."),
    ("visual.vision_model.", None, "vision."),
    ("mlp_AR.pre_norm.", "projector.pre_norm.", "projector.norm."),
    ("mlp_AR.linear_1.", "projector.linear_1.", "projector.linear_fc1."),
    ("mlp_AR.linear_2.", "projector.linear_2.", "projector.linear_fc2."),
)
_RULES = (
    *(
        (rf"(?:{re.escape(hub)}|model\.{re.escape(module or hub)})", here)
        for hub, module, here in _PARTS
    ),
    (r"lm_head\.", "text.lm_head."),
    (r"model\.(?:language_model\.)?", "text."),
)
_PUBLISHED = (
    *((re.escape(here), hub) for hub, _, here in _PARTS),
    (r"text\.lm_head\.", "lm_head."),
    (r"text\.", "model."),
)
# Parts of the tower's ancestors that files still hold.
_NEVER_USED = re.compile(r"vision\.(?:head\.|embeddings\.(?:packing_position|position_ids))")


class _Model(AnyGridModel):
    """Three parts: `vision`, `projector` and `text`."""

    def make_projector(self, config: PaddleOcrVLConfig, make: Maker) -> PatchMerger:
        """See `AnyGridModel.make_projector`."""
        return PatchMerger(
            make,
            config.vision.encoder.hidden_size,
            config.text.hidden_size,
            merge=config.vision.merge,
            norm=LayerNorm,
            epsilon=1e-5,
        )


def _tower_names(vision: GridConfig) -> TowerNames:
    encoder, block, side = vision.encoder, "vision.encoder.layers.0", vision.patch_size
    return TowerNames(
        sizes=(
            Size("vision_config.num_hidden_layers", encoder.num_hidden_layers, block[:-1]),
            Size("vision_config.hidden_size", encoder.hidden_size, _PATCHES, 0),
            Size("vision_config.patch_size", side, _PATCHES, -1),
            Size(
                "vision_config.intermediate_size",
                encoder.intermediate_size,
                f"{block}.mlp.fc1.weight",
                0,
            ),
            Size(
                "(vision_config.image_size / patch_size)**2",
                (vision.table_side or 1) ** 2,
                _TABLE,
                0,
            ),
        ),
        special={_PATCHES: Source(_PATCHES, Layout.CONVOLUTION, kernel=(3, side, side))},
        is_unused=lambda name: _NEVER_USED.match(name) is not None,
    )


def _weights(config: PaddleOcrVLConfig) -> WeightNames:
    return llava_names(config, tower=_tower_names, rules=_RULES, published=_PUBLISHED)


def _visual_inputs(
    config: PaddleOcrVLConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """Qwen-VL's, of patches that lie row by row and have axes of their own."""
    pixels, grid = arrays.get("pixel_values"), arrays.get("image_grid_thw")
    side, merge = config.vision.patch_size, config.vision.merge
    if pixels is not None and pixels.shape[1:] == (3, side, side):
        pixels = pixels.reshape(len(pixels), -1)
        frames = _frames(grid, len(pixels), merge)
        starts = np.cumsum([0, *(rows * columns for rows, columns in frames)])
        order = [
            start + block_order(rows, columns, merge)
            for start, (rows, columns) in zip(starts, frames, strict=False)
        ]
        arrays = {**arrays, "pixel_values": pixels[np.concatenate(order)] if order else pixels}
    return visual_inputs(config, ids, mask, arrays)


def _frames(grid: np.ndarray | None, patches: int, merge: int) -> list[tuple[int, int]]:
    """Rows and columns of all pictures; none where `visual_inputs` will say what is wrong."""
    if grid is None or grid.ndim != 2 or grid.shape[1] != 3:
        return []
    whole = np.issubdtype(grid.dtype, np.integer) and (grid > 0).all()
    if not whole or (grid[:, 1:] % merge).any() or grid.prod(-1).sum() != patches:
        return []
    return [(rows, columns) for count, rows, columns in grid.tolist() for _ in range(count)]


class _Processing(QwenVLProcessing):
    """Qwen-VL's for pictures."""

    def clips(self, config: Any) -> None:
        """See `Processing.clips`."""


FAMILY = Family(
    read_config=PaddleOcrVLConfig.from_hf,
    build=_Model,
    weights=_weights,
    array_names=("pixel_values", "image_grid_thw", "mm_token_type_ids"),
    visual_inputs=_visual_inputs,
    processing=_Processing,
)
