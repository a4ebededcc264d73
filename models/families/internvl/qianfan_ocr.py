"""Qianfan-OCR as a family: InternVL's parts under other names, for pictures alone."""

import dataclasses
from typing import Any, Literal

from models.checkpoints.naming import WeightNames
from models.families.base import Family
from models.families.fixed_grid import bucketed_pixels
from models.families.internvl.config import (
    InternVisionSettings,
    InternVLConfig,
    InternVLSettings,
)
from models.families.internvl.family import InternVLProcessing, internvl_names, published_tower
from models.families.internvl.model import InternVLModel
from models.text.sizes import stack_rules
from models.vision.grid_weights import fused_qkv

__all__ = ["FAMILY", "QianfanOcrConfig", "QianfanOcrSettings", "QianfanOcrVisionSettings"]

_TOWER = r"(?:model\.)?vision_(?:tower|model)\."
_LAYER = _TOWER + r"(?:encoder\.)?layers\.(\d+)\."
_HERE = r"vision.encoder.layers.\1."
# Files of the authors, files that transformers makes of them again, and transformers' modules.
_RULES = (
    (_LAYER + r"(?:attn\.proj|attention\.projection_layer)\.", _HERE + "self_attn.out_proj."),
    (_LAYER + r"(?:attn|attention)\.", _HERE + "self_attn."),
    (_LAYER + r"(?:norm1|layernorm_before)\.", _HERE + "layer_norm1."),
    (_LAYER + r"(?:norm2|layernorm_after)\.", _HERE + "layer_norm2."),
    (_LAYER + r"ls([12])\Z", _HERE + r"lambda_\2"),
    (_LAYER, _HERE),
    (_TOWER + r"embeddings\.(?:class_embedding|cls_token)\Z", "vision.embeddings.class_embedding"),
    (
        _TOWER + r"embeddings\.position_embeddings?\Z",
        "vision.embeddings.position_embedding.weight",
    ),
    (
        _TOWER + r"embeddings\.patch_embeddings?\.(?:projection\.)?",
        "vision.embeddings.patch_embedding.",
    ),
    (_TOWER + r"layernorm\.", "vision.post_layernorm."),
    (_TOWER, "vision."),
    (r"mlp1\.0\.", "projector.layer_norm."),
    (r"mlp1\.1\.", "projector.linear_1."),
    (r"mlp1\.3\.", "projector.linear_2."),
)
_TEXT_LAYERS = r"language_model\.model\.encoder\.layers\."

_PUBLISHED = (
    *published_tower("model.vision_tower.", "layers."),
    (r"projector\.", "model.multi_modal_projector."),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QianfanOcrVisionSettings(InternVisionSettings):
    """`vision_config`: InternViT with biases of queries, keys and values."""

    model_type: Literal["qianfan_ocr_vision"] = "qianfan_ocr_vision"  # pyright: ignore[reportIncompatibleVariableOverride]
    attention_bias: bool = True
    # Training alone drops blocks.
    ignored = InternVisionSettings.ignored | {"drop_path_rate"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QianfanOcrSettings(InternVLSettings):
    """The whole config.json."""

    model_type: Literal["qianfan_ocr"]  # pyright: ignore[reportIncompatibleVariableOverride]
    tie_word_embeddings: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class QianfanOcrConfig(InternVLConfig):
    """Fields of `InternVLConfig`."""

    model_type: str = "qianfan_ocr"
    settings = QianfanOcrSettings
    tower = QianfanOcrVisionSettings
    default_text = "qwen3"

    @staticmethod
    def ends_tower(layer: int, depth: int) -> bool:
        """See `InternVLConfig.ends_tower`; here the last layer has one meaning by either number."""
        return layer in (-1, depth)


def _weights(config: QianfanOcrConfig) -> WeightNames:
    rules = (
        *stack_rules(config.text, _TEXT_LAYERS),
        (_TEXT_LAYERS, "text.layers."),
        *_RULES,
    )
    names = internvl_names(config, rules, _PUBLISHED)
    fused, experts = fused_qkv(config.vision.encoder), names.alternatives
    both = tuple({**fused, **way} for way in experts or ({},))
    return dataclasses.replace(names, alternatives=(*both, *experts))


class _Processing(InternVLProcessing):
    """Each picture cut into tiles; templates write a text for it that is no visual token."""

    def placeholder(self, config: Any, tokenizer: Any) -> str:
        """See `Processing.placeholder`."""
        super().placeholder(config, tokenizer)
        return self.image_mark

    def clips(self, config: Any) -> None:
        """See `Processing.clips`."""

    def tiles_text(self, config: Any, tiles: int, placeholder: str, tokenizer: Any) -> str:
        """See `TileProcessing.tiles_text`."""
        token = tokenizer.convert_ids_to_tokens(config.image_token_id)
        return super().tiles_text(config, tiles, token, tokenizer)


FAMILY = Family(
    read_config=QianfanOcrConfig.from_hf,
    build=InternVLModel,
    weights=_weights,
    array_names=("pixel_values",),
    visual_inputs=bucketed_pixels,
    processing=_Processing,
    unused_names=("num_patches",),
)
