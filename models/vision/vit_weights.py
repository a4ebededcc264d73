"""Weights of a vision transformer over a fixed grid, by canonical names."""

import re

from models.checkpoints.sources import Layout, Size, Source
from models.vision.tower_names import TowerNames, layer_of
from models.vision.vit import VitConfig

__all__ = ["vit_names"]

_PATCHES = "vision.embeddings.patch_embedding.weight"
# A buffer that older files carry, the norm of CLIP's pooled output, and SigLIP's pooling head.
_NEVER_USED = re.compile(
    r"vision\.(embeddings\.position_ids|post_layernorm\.(weight|bias)|head\..*)"
)


def vit_names(vision: VitConfig) -> TowerNames:
    """Names and sources of the tower's weights, which files call as CLIP's do."""
    patch = vision.patch_size
    return TowerNames(
        sizes=_sizes(vision),
        special={_PATCHES: Source(_PATCHES, Layout.CONVOLUTION, kernel=(3, patch, patch))},
        is_unused=lambda name: _is_unused(name, vision),
    )


def _sizes(vision: VitConfig) -> tuple[Size, ...]:
    encoder, block = vision.encoder, "vision.encoder.layers.0"
    table = "vision.embeddings.position_embedding.weight"
    plus_class = " + 1" if vision.class_token else ""
    return (
        Size("layers up to vision_feature_layer", vision.num_layers, block[:-1]),
        Size("vision_config.hidden_size", encoder.hidden_size, table, -1),
        Size(
            "vision_config.intermediate_size",
            encoder.intermediate_size,
            f"{block}.mlp.fc1.weight",
            0,
        ),
        Size("vision_config.patch_size", vision.patch_size, _PATCHES, -1),
        Size(
            f"(vision_config.image_size / patch_size)**2{plus_class}",
            vision.num_positions,
            table,
            -2,
        ),
    )


def _is_unused(name: str, vision: VitConfig) -> bool:
    if (layer := layer_of(name)) is not None:
        return vision.num_layers <= layer < vision.encoder.num_hidden_layers
    return not (vision.post_norm and "post_layernorm" in name) and bool(_NEVER_USED.fullmatch(name))
