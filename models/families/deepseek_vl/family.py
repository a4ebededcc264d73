"""DeepSeek-VL as a family: its module, its processing, and how the parts join."""

import dataclasses
from typing import Any

from PIL import Image

from models.checkpoints.naming import WeightNames
from models.families.deepseek_vl.config import DeepseekVLConfig
from models.families.fixed_grid import FixedGridConfig, FixedGridModel, FixedGridProcessing
from models.families.llava.family import FAMILY as LLAVA
from models.families.llava.naming import llava_names
from models.inputs.image_settings import check_padded_square
from models.layers.activations import Activation
from models.layers.linear import Maker
from models.text.sizes import STACKED
from models.vision.projectors import MlpProjector

__all__ = ["FAMILY"]

_RULES = (
    (r"(model\.)?vision_model\.(vision_model\.)?", "vision."),
    (r"(model\.)?aligner\.linear(\d)\.", r"projector.linear_\2."),
)
_PUBLISHED = (
    (r"text\.lm_head\.", "lm_head."),
    (STACKED, "model.language_model.layers."),
    (r"text\.", "model.language_model."),
    (r"vision\.", "model.vision_model."),
    (r"projector\.linear_(\d)\.", r"model.aligner.linear\1."),
)


def _weights(config: DeepseekVLConfig) -> WeightNames:
    return llava_names(config, rules=_RULES, published=_PUBLISHED)


class _Model(FixedGridModel):
    """The three parts of a DeepSeek-VL model."""

    def make_projector(self, config: DeepseekVLConfig, make: Maker) -> MlpProjector:
        """See `FixedGridModel.make_projector`."""
        width, hidden_size = config.vision.feature_width, config.text.hidden_size
        return MlpProjector(make, width, hidden_size, Activation.GELU, bias=True)


class _Processing(FixedGridProcessing):
    """Each picture resized to the tower's longest side, then padded to its square."""

    def check(self, config: FixedGridConfig, image_processor: Any) -> None:
        """See `Processing.check`: padded pictures have the tower's size."""
        check_padded_square(image_processor, config.vision.image_size)

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """See `Processing.check_picture`; padding follows the resizing, so that nothing grows."""
        if not image_processor.do_resize:
            super().check_picture(image_processor, picture)


FAMILY = dataclasses.replace(
    LLAVA,
    read_config=DeepseekVLConfig.from_hf,
    build=_Model,
    weights=_weights,
    processing=_Processing,
)
