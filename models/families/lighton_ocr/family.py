"""LightOnOCR as a family: names of weights, pictures against tokens, their processing."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from models.checkpoints.naming import WeightNames
from models.families.base import Family, VisualInputs
from models.families.lighton_ocr.config import LightOnOcrConfig
from models.families.lighton_ocr.model import LightOnOcrModel
from models.families.llava.naming import llava_names
from models.families.mistral3.family import cut_pictures
from models.families.mistral3.processing import PixtralProcessing
from models.inputs.pixels import check_image_sizes, check_image_tokens, pad_to_bucket
from models.inputs.processing import Processing
from models.text.sizes import STACKED
from models.vision.patch_grid import pack_frames
from models.vision.pixtral_weights import pixtral_names

__all__ = ["FAMILY"]

_TOWER = "model.vision_encoder."
_PARTS = (
    ("model.vision_projection.patch_merger.merging_layer.", "projector.merging_layer."),
    ("model.vision_projection.", "projector."),
    ("model.language_model.", "text."),
)


def _weights(config: LightOnOcrConfig) -> WeightNames:
    return llava_names(
        config,
        tower=partial(pixtral_names, file=_TOWER),
        rules=tuple((theirs.replace(".", r"\."), here) for theirs, here in _PARTS[:2]),
        published=(
            (r"text\.lm_head\.", "lm_head."),
            (STACKED, "model.language_model.layers."),
            *((here.replace(".", r"\."), theirs) for theirs, here in _PARTS),
        ),
    )


def _visual_inputs(
    config: LightOnOcrConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """See `models.families.base.Family.visual_inputs`."""
    sizes = check_image_sizes(arrays)
    patch, merge = config.vision.patch_size, config.merge
    grids = [(height // patch, width // patch) for height, width in sizes]
    patches = cut_pictures(arrays["pixel_values"], sizes, grids, patch, 1) if sizes else None
    blocks = [(rows // merge) * (columns // merge) for rows, columns in grids]
    tokens = int((ids == config.image_token_id).sum())
    check_image_tokens(config.image_token_id, tokens, len(sizes), sum(blocks))
    if patches is None:
        return VisualInputs()
    frames = np.repeat(np.arange(len(grids)), [rows * columns for rows, columns in grids])
    packed, layout = pack_frames(patches, grids, frames, 1)
    # A rim of patches that makes no block gives no visual token.
    apart = packed.shape[1] // merge**2
    index = np.concatenate([i * apart + np.arange(count) for i, count in enumerate(blocks)])
    index = jnp.asarray(pad_to_bucket(index.astype(np.int32)))
    return VisualInputs(packed, dataclasses.replace(layout, feature_index=index))


class _Processing(PixtralProcessing):
    """Each picture resized to whole patches; as many image tokens as it has whole blocks."""

    def placeholder(self, config: Any, tokenizer: Any) -> str:
        """See `Processing.placeholder`; no token ends a row."""
        return Processing.placeholder(self, config, tokenizer)

    def preprocess(
        self,
        config: Any,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        output = self.run(image_processor, pictures, do_pad=True)
        counts = (output["image_sizes"] // config.block_size).prod(-1)
        if not counts.all():
            raise ValueError(
                f"image: a picture of {output['image_sizes'][counts.argmin()].tolist()} pixels "
                f"(height, width) has no block of {config.block_size} x {config.block_size} pixels"
            )
        return output, [placeholder * int(count) for count in counts]


FAMILY = Family(
    read_config=LightOnOcrConfig.from_hf,
    build=LightOnOcrModel,
    weights=_weights,
    array_names=("pixel_values", "image_sizes"),
    visual_inputs=_visual_inputs,
    processing=_Processing,
)
