"""LLaVA-1.5 as a family: names of its weights, its processing, and how the parts join."""

from collections.abc import Mapping

import numpy as np

from models.families.base import Family, VisualInputs
from models.families.fixed_grid import FixedGridProcessing, read_pixels
from models.families.llava.config import LlavaConfig
from models.families.llava.model import LlavaModel
from models.families.llava.naming import llava_names

__all__ = ["FAMILY"]


def _visual_inputs(
    config: LlavaConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    return VisualInputs(read_pixels(config, ids, arrays))


FAMILY = Family(
    read_config=LlavaConfig.from_hf,
    build=LlavaModel,
    weights=llava_names,
    array_names=("pixel_values",),
    visual_inputs=_visual_inputs,
    processing=FixedGridProcessing,
    features_per_image=lambda config: config.image_tokens,
)
