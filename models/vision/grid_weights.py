"""Weights of a vision tower over a grid of any size: names in Qwen-VL's files, and sources."""

from models.checkpoints.sources import Layout, Rows, Size, Source
from models.vision.encoder import EncoderConfig
from models.vision.grid_tower import GridConfig

__all__ = ["GRID_RULES", "fused_qkv", "grid_published", "grid_sizes", "grid_special"]

_PATCHES = "vision.patch_embedding.weight"
_BLOCK = "vision.encoder.layers.{}"

# Parts of a block in files, and here.
_PARTS = (
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("attn.qkv.", "self_attn.qkv."),
    ("attn.proj.", "self_attn.out_proj."),
    ("attn.q_norm.", "self_attn.q_norm."),  # of GLM-OCR
    ("attn.k_norm.", "self_attn.k_norm."),
    ("mlp.linear_", "mlp."),  # of Qwen3-VL
    ("mlp.", "mlp."),
)

GRID_RULES = (
    (r"(?:model\.)?visual\.patch_embed\.proj\.", "vision.patch_embedding."),
    (r"(?:model\.)?visual\.pos_embed\.", "vision.position_embedding."),
    *(
        (rf"(?:model\.)?visual\.blocks\.(\d+)\.{file}", rf"vision.encoder.layers.\1.{here}")
        for file, here in _PARTS
    ),
)
"""See `models.checkpoints.naming.WeightNames.rules`."""


def grid_published(start: str, *, linear_in_names: bool) -> tuple[tuple[str, str], ...]:
    """See `models.checkpoints.naming.WeightNames.published`.

    Args:
        start: goes before all names.
        linear_in_names: whether the layers of MLPs are called `linear_fc1` and not `fc1`.
    """
    left_out = "mlp." if linear_in_names else "mlp.linear_"
    return (
        (r"vision\.patch_embedding\.", f"{start}visual.patch_embed.proj."),
        (r"vision\.position_embedding\.", f"{start}visual.pos_embed."),
        *(
            (rf"vision\.encoder\.layers\.(\d+)\.{here}", rf"{start}visual.blocks.\1.{file}")
            for file, here in _PARTS
            if file != left_out
        ),
    )


def grid_special(vision: GridConfig) -> dict[str, Source]:
    """Sources of parameters that the general rule does not describe."""
    kernel = (3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    special = {_PATCHES: Source(_PATCHES, Layout.CONVOLUTION, kernel=kernel)}
    return special | fused_qkv(vision.encoder)


def fused_qkv(encoder: EncoderConfig) -> dict[str, Source]:
    """Sources of queries, keys and values that lie in one tensor of a block."""
    width, found = encoder.hidden_size, {}
    for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = Rows(number * width, (number + 1) * width, 3 * width)
        leaves = [("weight", Layout.TRANSPOSED), ("bias", Layout.SAME)]
        for leaf, layout in leaves[: 1 + encoder.attention_bias]:
            fused = f"{_BLOCK}.self_attn.qkv.{leaf}"
            found[f"{_BLOCK}.self_attn.{part}.{leaf}"] = Source(fused, layout, rows=rows)
    return found


def grid_sizes(vision: GridConfig) -> tuple[Size, ...]:
    """Where the files show the sizes that `vision_config` states."""
    encoder, block = vision.encoder, _BLOCK.format(0)
    up = "up_proj" if encoder.gated_mlp else "fc1"
    sizes = [
        Size("vision_config.depth", encoder.num_hidden_layers, block[:-1]),
        Size("vision_config: width of patches", encoder.hidden_size, _PATCHES, 0),
        Size("vision_config.temporal_patch_size", vision.temporal_patch_size, _PATCHES, -3),
        Size("vision_config.patch_size", vision.patch_size, _PATCHES, -1),
        Size(
            "vision_config: width of MLPs", encoder.intermediate_size, f"{block}.mlp.{up}.weight", 0
        ),
    ]
    if vision.table_side is not None:
        table = "vision.position_embedding.weight"
        sizes.append(Size("vision_config.num_position_embeddings", vision.table_side**2, table, 0))
    return tuple(sizes)
