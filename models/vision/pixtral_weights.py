"""Weights of a Pixtral vision tower: names in files, and sources."""

import re

from models.checkpoints.sources import Layout, Size, Source
from models.vision.grid_tower import GridConfig
from models.vision.tower_names import TowerNames

__all__ = ["pixtral_names"]

_PATCHES = "vision.patch_embedding.weight"
_LAYER = re.compile(r"vision\.encoder\.layers\.([0-9]{1,9})\.")

# Parts of a block in files, and here.
_PARTS = (
    ("attention.o_proj.", "self_attn.out_proj."),
    ("attention.", "self_attn."),
    ("attention_norm.", "layer_norm1."),
    ("ffn_norm.", "layer_norm2."),
    ("feed_forward.", "mlp."),
)
_RULES = (
    (r"(?:model\.)?vision_tower\.patch_conv\.", "vision.patch_embedding."),
    (r"(?:model\.)?vision_tower\.ln_pre\.", "vision.pre_norm."),
    *(
        (
            rf"(?:model\.)?vision_tower\.transformer\.layers\.(\d+)\.{re.escape(file)}",
            rf"vision.encoder.layers.\1.{here}",
        )
        for file, here in _PARTS
    ),
)
_PUBLISHED = (
    (r"vision\.patch_embedding\.", "vision_tower.patch_conv."),
    (r"vision\.pre_norm\.", "vision_tower.ln_pre."),
    *(
        (
            rf"vision\.encoder\.layers\.(\d+)\.{re.escape(here)}",
            rf"vision_tower.transformer.layers.\1.{file}",
        )
        for file, here in _PARTS
    ),
)


def pixtral_names(vision: GridConfig) -> TowerNames:
    """Names and sources of the tower's weights."""
    encoder, block, side = vision.encoder, "vision.encoder.layers.0", vision.patch_size
    depth = encoder.num_hidden_layers

    def is_unused(name: str) -> bool:
        layer = _LAYER.match(name)
        return layer is not None and vision.num_layers <= int(layer[1]) < depth

    return TowerNames(
        rules=_RULES,
        published=_PUBLISHED,
        special={_PATCHES: Source(_PATCHES, Layout.CONVOLUTION, kernel=(3, side, side))},
        sizes=(
            Size("layers up to vision_feature_layer", vision.num_layers, block[:-1]),
            Size("vision_config.hidden_size", encoder.hidden_size, _PATCHES, 0),
            Size("vision_config.patch_size", side, _PATCHES, -1),
            Size(
                "vision_config.intermediate_size",
                encoder.intermediate_size,
                f"{block}.mlp.up_proj.weight",
                0,
            ),
        ),
        is_unused=is_unused,
    )
