"""Weights of a Pixtral vision tower: names in files, and sources."""

import re

from models.checkpoints.sources import Layout, Size, Source
from models.vision.grid_tower import GridConfig
from models.vision.tower_names import TowerNames, layer_of

__all__ = ["pixtral_names"]

_PATCHES = "vision.patch_embedding.weight"

# Parts of a block in files, and here.
_PARTS = (
    ("attention.o_proj.", "self_attn.out_proj."),
    ("attention.", "self_attn."),
    ("attention_norm.", "layer_norm1."),
    ("ffn_norm.", "layer_norm2."),
    ("feed_forward.", "mlp."),
)


def pixtral_names(vision: GridConfig, file: str = "vision_tower.") -> TowerNames:
    """Names and sources of the tower's weights; `file` is what names in files begin with.

    Files may also have "model." before that.
    """
    theirs = rf"(?:model\.)?{re.escape(file.removeprefix('model.'))}"
    encoder, block, side = vision.encoder, "vision.encoder.layers.0", vision.patch_size
    depth = encoder.num_hidden_layers

    def is_unused(name: str) -> bool:
        layer = layer_of(name)
        return layer is not None and vision.num_layers <= layer < depth

    return TowerNames(
        rules=(
            (rf"{theirs}patch_conv\.", "vision.patch_embedding."),
            (rf"{theirs}ln_pre\.", "vision.pre_norm."),
            *(
                (
                    rf"{theirs}transformer\.layers\.(\d+)\.{re.escape(part)}",
                    rf"vision.encoder.layers.\1.{here}",
                )
                for part, here in _PARTS
            ),
        ),
        published=(
            (r"vision\.patch_embedding\.", f"{file}patch_conv."),
            (r"vision\.pre_norm\.", f"{file}ln_pre."),
            *(
                (
                    rf"vision\.encoder\.layers\.(\d+)\.{re.escape(here)}",
                    rf"{file}transformer.layers.\1.{part}",
                )
                for part, here in _PARTS
            ),
        ),
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
