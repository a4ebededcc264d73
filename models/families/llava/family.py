"""LLaVA-1.5 as a family: names of its weights, its processing, and how the parts join."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.base import Family, VisualInputs
from models.families.llava.config import LlavaConfig
from models.families.llava.model import LlavaModel
from models.families.llava.naming import llava_names
from models.inputs.image_settings import check_image_settings
from models.inputs.pixels import check_image_tokens, check_pixels
from models.inputs.processing import Processing

__all__ = ["FAMILY"]


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
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """As `Processing.preprocess`."""
        pixels = self.run(image_processor, pictures)["pixel_values"]
        return {"pixel_values": pixels}, [placeholder * config.vision.num_features] * len(pictures)


FAMILY = Family(
    read_config=LlavaConfig.from_hf,
    build=LlavaModel,
    weights=llava_names,
    array_names=("pixel_values",),
    visual_inputs=_visual_inputs,
    processing=_Processing,
    features_per_image=lambda config: config.vision.num_features,
)
