"""LLaVA-1.5 as a family: names of its weights, its processing, and how the parts join."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.checkpoints.naming import WeightNames
from models.families.base import Family, VisualInputs
from models.families.llava.config import LlavaConfig
from models.families.llava.model import LlavaModel
from models.inputs.image_settings import check_image_settings
from models.inputs.pixels import check_image_tokens, check_pixels
from models.inputs.processing import Processing
from models.text.sizes import text_sizes
from models.vision.vit_weights import is_unused_in_vit, vit_sizes, vit_special

__all__ = ["FAMILY"]

_RULES = (
    (r"(model\.)?language_model\.lm_head\.|lm_head\.", "text.lm_head."),
    (r"(model\.)?language_model\.model\.|(model\.)?language_model\.", "text."),
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
)

# What transformers 4 and 5 both write and read.
_PUBLISHED = {
    "text.lm_head.": "language_model.lm_head.",
    "text.": "language_model.model.",
    "vision.": "vision_tower.vision_model.",
    "projector.": "multi_modal_projector.",
}

# Buffers that older files carry.
_BUFFERS = re.compile(r"text\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def _weights(config: LlavaConfig) -> WeightNames:
    def is_unused(name: str) -> bool:
        if name == "text.lm_head.weight":
            return config.text.tie_word_embeddings
        return bool(_BUFFERS.fullmatch(name)) or is_unused_in_vit(name, config.vision)

    return WeightNames(
        rules=_RULES,
        published=_PUBLISHED,
        sizes=(*text_sizes(config.text), *vit_sizes(config.vision)),
        is_unused=is_unused,
        special=vit_special(config.vision),
    )


def _visual_inputs(
    config: LlavaConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    pixels, size = arrays.get("pixel_values"), config.vision.image_size
    if pixels is not None:
        pixels = check_pixels(pixels, (3, size, size), f"[images, 3, {size}, {size}]")
    images = 0 if pixels is None else len(pixels)
    tokens = int((ids == config.image_token_id).sum())
    check_image_tokens(config.image_token_id, tokens, images, images * config.vision.num_features)
    return VisualInputs(pixels)


class _Processing(Processing):
    """Each picture resized to the tower's square; one run of image tokens a picture."""

    def check(self, config: LlavaConfig, image_processor: Any) -> None:
        """As `Processing.check`: pictures have the tower's size."""
        check_image_settings(image_processor, config.vision.image_size)

    def preprocess(
        self,
        config: LlavaConfig,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """As `Processing.preprocess`."""
        pixels = self.run(image_processor, pictures)["pixel_values"]
        return {"pixel_values": pixels}, [placeholder * config.vision.num_features] * len(pictures)


FAMILY = Family(
    read_config=LlavaConfig.from_hf,
    build=LlavaModel,
    weights=_weights,
    array_names=("pixel_values",),
    visual_inputs=_visual_inputs,
    processing=_Processing,
    features_per_image=lambda config: config.vision.num_features,
)
