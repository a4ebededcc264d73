"""LLaVA-1.5 as a family: names of its weights, its processing, and how the parts join."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.families.base import Family, ModelConfig, VisualInputs
from models.families.fixed_grid import FixedGridProcessing, read_pixels
from models.families.llava.config import LlavaConfig
from models.families.llava.model import LlavaModel
from models.families.llava.naming import llava_names

__all__ = ["FAMILY"]


def _read_config(content: Mapping[str, Any]) -> ModelConfig:
    """Settings of LLaVA or, where the tower is Pixtral's, of that family."""
    tower = content.get("vision_config")
    if isinstance(tower, dict) and tower.get("model_type") == "pixtral":
        # Here and not above, because that family is built on this one.
        from models.families.mistral3.config import Mistral3Config

        return Mistral3Config.from_hf_llava(content)
    return LlavaConfig.from_hf(content)


def _visual_inputs(
    config: LlavaConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    return VisualInputs(read_pixels(config, ids, arrays))


FAMILY = Family(
    read_config=_read_config,
    build=LlavaModel,
    weights=llava_names,
    array_names=("pixel_values",),
    visual_inputs=_visual_inputs,
    processing=FixedGridProcessing,
    features_per_image=lambda config: config.image_tokens,
)
