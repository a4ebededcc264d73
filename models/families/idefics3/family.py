"""Idefics3 and SmolVLM as a family: names of weights, and how the parts join."""

from models.checkpoints.naming import WeightNames
from models.families.base import Family
from models.families.idefics3.config import Idefics3Config
from models.families.idefics3.model import Idefics3Model
from models.families.idefics3.processing import Idefics3Processing
from models.families.idefics3.tiles import visual_inputs
from models.families.llava.naming import llava_names
from models.text.sizes import STACKED, stack_rules

__all__ = ["FAMILY"]

_PARTS = (
    ("model.text_model.", "text."),
    ("model.vision_model.", "vision."),
    ("model.connector.modality_projection.proj.", "projector.linear."),
)


def _weights(config: Idefics3Config) -> WeightNames:
    return llava_names(
        config,
        rules=(
            *stack_rules(config.text, r"model\.text_model\.layers\."),
            *((file.replace(".", r"\."), here) for file, here in _PARTS),
        ),
        published=(
            (r"text\.lm_head\.", "lm_head."),
            (STACKED, "model.text_model.layers."),
            *((here.replace(".", r"\."), file) for file, here in _PARTS),
        ),
    )


FAMILY = Family(
    read_config=Idefics3Config.from_hf,
    build=Idefics3Model,
    weights=_weights,
    array_names=("pixel_values", "pixel_attention_mask"),
    unused_names=("rows", "cols"),
    visual_inputs=visual_inputs,
    processing=Idefics3Processing,
)
