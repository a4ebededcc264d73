"""GLM-4.1V as a family: its module, names of its weights, and how the parts join."""

import re
from collections.abc import Mapping

import numpy as np

from models.checkpoints.naming import WeightNames
from models.checkpoints.sources import Layout, Source
from models.families.any_grid import AnyGridModel
from models.families.base import Family, VisualInputs
from models.families.glm4v.clips import Glm4vClipProcessing, Glm46vClipProcessing
from models.families.glm4v.config import Glm4vConfig
from models.families.qwen_vl.config import QwenVLConfig
from models.families.qwen_vl.processing import QwenVLProcessing
from models.families.qwen_vl.visual_inputs import ARRAY_NAMES
from models.families.qwen_vl.visual_inputs import visual_inputs as qwen_visual_inputs
from models.inputs.clip_processing import ClipProcessing
from models.layers.linear import Maker
from models.text.fused_projections import fused_sources
from models.text.moe_weights import moe_alternatives
from models.text.sizes import STACKED, layer_numbers, stack_rules, text_sizes
from models.vision.grid_weights import GRID_RULES, grid_published, grid_sizes, grid_special
from models.vision.projectors import ConvolvingMerger

__all__ = ["FAMILY"]

_VISUAL = r"(?:model\.)?visual\."
_LAYER = r"(?:model\.)?language_model\.layers\."
# Norms of a dense decoder's block in files, and here.
_NORMS = (
    ("post_attention_layernorm", "pre_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_attention_layernorm"),
    ("post_mlp_layernorm", "post_feedforward_layernorm"),
)
_PARTS = (
    ("embeddings.position_embedding.", "vision.position_embedding."),
    ("post_conv_layernorm.", "vision.pre_norm."),
    ("post_layernorm.", "vision.post_norm."),
    ("downsample.", "projector.downsample."),
    ("merger.proj.", "projector.proj."),
    ("merger.post_projection_norm.", "projector.post_projection_norm."),
    ("merger.", "projector.mlp."),
)
_RULES = (
    *GRID_RULES,
    *((_VISUAL + file.replace(".", r"\."), here) for file, here in _PARTS),
    (r"lm_head\.", "text.lm_head."),
    (r"(?:model\.)?language_model\.", "text."),
)
_NORM_RULES = tuple(
    (_LAYER + rf"(\d+)\.{file}\.", rf"text.layers.\1.{here}.") for file, here in _NORMS
)
_PUBLISHED = (
    *((here.replace(".", r"\."), f"model.visual.{file}") for file, here in _PARTS),
    *grid_published("model.", linear_in_names=False),
    (r"text\.lm_head\.", "lm_head."),
    (STACKED, "model.language_model.layers."),
    (r"text\.", "model.language_model."),
)
_NORMS_PUBLISHED = tuple(
    (rf"text\.layers\.(\d+)\.{here}\.", rf"model.language_model.layers.\1.{file}.")
    for file, here in _NORMS
)


class _Model(AnyGridModel):
    """The parts of a GLM-4.1V model: `vision`, `projector` and `text`."""

    def make_projector(self, config: Glm4vConfig, make: Maker) -> ConvolvingMerger:
        """See `AnyGridModel.make_projector`."""
        return ConvolvingMerger(
            make,
            config.vision.encoder.hidden_size,
            config.text.hidden_size,
            config.merger_width,
            config.merger_act,
            merge=config.vision.merge,
        )


def _weights(config: Glm4vConfig) -> WeightNames:
    merge, width = config.vision.merge, config.vision.encoder.hidden_size
    downsample, text = "projector.downsample.weight", config.text
    rules, published, experts = stack_rules(text, _LAYER), (), moe_alternatives(text)
    if text.sandwich_norms:
        rules, published = _NORM_RULES, _NORMS_PUBLISHED

    def is_unused(name: str) -> bool:
        # Files of models with experts also hold a layer that predicts several tokens at once.
        number = re.match(r"text\.layers\.(\d+)\.", name)
        behind = number is not None and int(number[1]) >= text.num_hidden_layers
        return behind or (name == "text.lm_head.weight" and text.tie_word_embeddings)

    return WeightNames(
        rules=rules + _RULES,
        published=published + _PUBLISHED,
        sizes=(*text_sizes(text), *grid_sizes(config.vision)),
        numbers=layer_numbers(text),
        is_unused=is_unused,
        alternatives=experts,
        special={
            **grid_special(config.vision),
            **fused_sources(text),
            **(dict(experts[-1]) if experts else {}),
            downsample: Source(downsample, Layout.CONVOLUTION, kernel=(width, merge, merge)),
        },
    )


def _visual_inputs(
    config: Glm4vConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """Qwen-VL's, where image tokens between those around a clip stand for the clip's frames."""
    opened = (ids == config.video_start_token_id).cumsum(-1)
    closed = (ids == config.video_end_token_id).cumsum(-1)
    image, video = config.visual_token_ids
    of_clip = (opened > closed) & (ids == image)
    return qwen_visual_inputs(config, np.where(of_clip, video, ids), mask, arrays)


class _Processing(QwenVLProcessing):
    """Qwen-VL's for pictures, and GLM's own for clips."""

    def clips(self, config: QwenVLConfig) -> ClipProcessing:
        """See `Processing.clips`."""
        newer = config.model_type in ("glm46v", "glm_ocr")
        return Glm46vClipProcessing() if newer else Glm4vClipProcessing()


FAMILY = Family(
    read_config=Glm4vConfig.from_hf,
    build=_Model,
    weights=_weights,
    array_names=ARRAY_NAMES,
    visual_inputs=_visual_inputs,
    processing=_Processing,
)
