"""Mllama as a family: names of its weights, its pictures against tokens, its processing."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.checkpoints.naming import WeightNames
from models.checkpoints.sources import Layout, Size, Source
from models.families.base import Family
from models.families.llava.naming import llava_names
from models.families.mllama.config import MllamaConfig
from models.families.mllama.model import MllamaModel
from models.families.mllama.pictures import visual_inputs
from models.families.mllama.vision import MllamaVisionConfig
from models.inputs.image_settings import check_image_settings, check_max_tiles
from models.inputs.processing import Processing
from models.vision.tower_names import TowerNames

__all__ = ["FAMILY"]

_PATCHES = "vision.patch_embedding.weight"
_THEIRS = r"(model\.)?vision_model\.((global_)?transformer\.layers\.\d+)\."
_OURS = r"vision\.((global_)?transformer\.layers\.\d+)\."
_PARTS = (
    ("self_attn.o_proj.", "self_attn.out_proj."),
    ("input_layernorm.", "layer_norm1."),
    ("post_attention_layernorm.", "layer_norm2."),
)
_RULES = (
    *((_THEIRS + re.escape(theirs), rf"vision.\2.{ours}") for theirs, ours in _PARTS),
    (r"(model\.)?vision_model\.", "vision."),
)
_PUBLISHED = (
    *((_OURS + re.escape(ours), rf"vision_model.\1.{theirs}") for theirs, ours in _PARTS),
    (r"vision\.", "vision_model."),
)


def _tower_names(vision: MllamaVisionConfig) -> TowerNames:
    encoder, block = vision.encoder, "vision.transformer.layers.0"
    table, positions = "vision.gated_positional_embedding.embedding", vision.tile_features
    return TowerNames(
        sizes=(
            Size("vision_config.num_hidden_layers", encoder.num_hidden_layers, block[:-1]),
            Size(
                "vision_config.num_global_layers",
                vision.num_global_layers,
                "vision.global_transformer.layers.",
            ),
            Size("vision_config.hidden_size", encoder.hidden_size, table, 1),
            Size(
                "vision_config.intermediate_size",
                encoder.intermediate_size,
                f"{block}.mlp.fc1.weight",
                0,
            ),
            Size("vision_config.patch_size", vision.patch_size, _PATCHES, -1),
            Size("(vision_config.image_size / patch_size)**2 + 1", positions, table, 0),
            Size(
                "vision_config.max_num_tiles * hidden_size",
                vision.max_num_tiles * encoder.hidden_size,
                "vision.pre_tile_positional_embedding.embedding.weight",
                1,
            ),
        ),
        special={
            _PATCHES: Source(
                _PATCHES, Layout.CONVOLUTION, kernel=(3, vision.patch_size, vision.patch_size)
            )
        },
        is_unused=lambda name: False,
        rules=_RULES,
        published=_PUBLISHED,
    )


def _names(config: MllamaConfig) -> WeightNames:
    return llava_names(config, tower=_tower_names)


class MllamaProcessing(Processing):
    """Each picture cut into tiles; one image token a picture, whatever its size."""

    def plain_prompt(self, placeholder: str, question: str, num_images: int) -> str:
        """See `Processing.plain_prompt`."""
        return placeholder * num_images + question

    def complete(self, prompt: str, placeholder: str, bos: str) -> str:
        """A prompt without BOS gets one, behind the pictures that it starts with."""
        if not bos or bos in prompt:
            return prompt
        text = prompt
        while text.startswith(placeholder):
            text = text[len(placeholder) :]
        return prompt[: len(prompt) - len(text)] + bos + text

    def check(self, config: MllamaConfig, image_processor: Any) -> None:
        """See `Processing.check`: tiles have the tower's size, and pictures as many."""
        check_image_settings(image_processor, config.vision.image_size)
        check_max_tiles(image_processor, config.vision.image_size, config.vision.max_num_tiles)

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """Pictures of any size become at most as many tiles as the tower takes."""

    def preprocess(
        self,
        config: Any,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        output = image_processor([list(pictures)], return_tensors="np")
        arrays = {name: np.asarray(output[name])[0] for name in names}
        return arrays, [placeholder] * len(pictures)


FAMILY = Family(
    read_config=MllamaConfig.from_hf,
    build=MllamaModel,
    weights=_names,
    array_names=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"),
    visual_inputs=visual_inputs,
    processing=MllamaProcessing,
)
