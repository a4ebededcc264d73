"""Names and layouts of LLaVA-1.5's weights in Hugging Face files, and ours.

Files of transformers 4 and 5 name the same weight differently. `canonical` maps all of them to one
name, that of the module (`text`, `vision`, `projector`, `head`) and the rest of the key.
"""

import re
from typing import Any

from models.checkpoints.weights import Layout, Size, Source
from models.families.llava.config import LlavaConfig

__all__ = ["canonical", "is_unused", "published", "sizes", "source"]

# The first that matches applies.
_PREFIXES = (
    ("language_model.lm_head.", "head."),
    ("lm_head.", "head."),
    ("language_model.model.", "text."),
    ("language_model.", "text."),
    ("vision_tower.vision_model.", "vision."),
    ("vision_tower.", "vision."),
    ("multi_modal_projector.", "projector."),
)

# What transformers 4 and 5 both write and read.
_PUBLISHED = {
    "head.": "language_model.lm_head.",
    "text.": "language_model.model.",
    "vision.": "vision_tower.vision_model.",
    "projector.": "multi_modal_projector.",
}

_VISION_BLOCK = {
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.out_proj",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}

_TEXT_BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "expand": "mlp.up_proj",
    "contract": "mlp.down_proj",
}

_MODULES: dict[tuple[str, ...], str] = {
    ("vision", "patch_embedding"): "vision.embeddings.patch_embedding",
    ("vision", "embedding_norm"): "vision.pre_layrnorm",
    ("projector", "expand"): "projector.linear_1",
    ("projector", "project"): "projector.linear_2",
    ("text", "norm"): "text.norm",
    **{
        ("vision", "layers", k): f"vision.encoder.layers.{{}}.{v}" for k, v in _VISION_BLOCK.items()
    },
    **{("text", "layers", k): f"text.layers.{{}}.{v}" for k, v in _TEXT_BLOCK.items()},
}

_SINGLE: dict[tuple[str, ...], Source] = {
    ("vision", "class_embedding"): Source("vision.embeddings.class_embedding"),
    ("vision", "position_embedding"): Source("vision.embeddings.position_embedding.weight"),
    ("text", "embedding"): Source("text.embed_tokens.weight"),
    ("text", "head"): Source("head.weight", Layout.TRANSPOSED),
}

_LEAVES = {
    "kernel": ("weight", Layout.TRANSPOSED),
    "scale": ("weight", Layout.SAME),
    "bias": ("bias", Layout.SAME),
}

# Buffers that older files carry, and the norm of the class token's pooled output.
_NEVER_USED = re.compile(
    r"text\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|vision\.embeddings\.position_ids"
    r"|vision\.post_layernorm\.(weight|bias)"
)
_VISION_LAYER = re.compile(r"vision\.encoder\.layers\.([0-9]{1,9})\.")


def canonical(key: str) -> str:
    """The one name of a weight that files call differently; a foreign key stays as it is."""
    inner = key.removeprefix("model.")
    for prefix, replacement in _PREFIXES:
        if inner.startswith(prefix):
            return replacement + inner.removeprefix(prefix)
    return key


def published(name: str) -> str:
    """A key for a canonical name that transformers 4 and 5 both read."""
    for prefix, replacement in _PUBLISHED.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    raise ValueError(f"not a canonical name: {name}")


def source(path: tuple[Any, ...]) -> Source:
    """Where the parameter at `path` of a `LlavaModel` comes from, by canonical name."""
    if path in _SINGLE:
        return _SINGLE[path]
    *module, leaf = path
    suffix, layout = _LEAVES[leaf]
    name = _MODULES[tuple(module)]
    if name == "vision.embeddings.patch_embedding":
        layout = Layout.PATCHES
    return Source(f"{name}.{suffix}", layout)


def sizes(config: LlavaConfig) -> list[Size]:
    """Where the files show the sizes that config.json states."""
    vision, text = config.vision, config.text
    vision_block, text_block = "vision.encoder.layers.0", "text.layers.0"
    queries, keys = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    return [
        Size("text_config.num_hidden_layers", text.num_layers, "text.layers."),
        Size("text_config.vocab_size", text.vocab_size, "text.embed_tokens.weight", 0),
        Size("text_config.hidden_size", text.width, "text.embed_tokens.weight", 1),
        Size(
            "text_config.intermediate_size", text.mlp_width, f"{text_block}.mlp.up_proj.weight", 0
        ),
        Size(
            "text_config.num_attention_heads * head_dim",
            queries,
            f"{text_block}.self_attn.q_proj.weight",
            0,
        ),
        Size(
            "text_config.num_key_value_heads * head_dim",
            keys,
            f"{text_block}.self_attn.k_proj.weight",
            0,
        ),
        Size("layers up to vision_feature_layer", vision.num_layers, "vision.encoder.layers."),
        Size("vision_config.hidden_size", vision.width, "vision.embeddings.class_embedding", 0),
        Size(
            "vision_config.intermediate_size", vision.mlp_width, f"{vision_block}.mlp.fc1.bias", 0
        ),
        Size(
            "vision_config.patch_size",
            vision.patch_size,
            "vision.embeddings.patch_embedding.weight",
            -1,
        ),
        Size(
            "(vision_config.image_size / patch_size)**2 + 1",
            vision.num_patches + 1,
            "vision.embeddings.position_embedding.weight",
            0,
        ),
    ]


def is_unused(name: str, config: LlavaConfig) -> bool:
    """Whether a model has no use for a weight that rightly lies in its files."""
    if _NEVER_USED.fullmatch(name):
        return True
    if layer := _VISION_LAYER.match(name):
        return config.vision.num_layers <= int(layer[1]) < config.vision.depth
    return name == "head.weight" and config.text.tied_head
