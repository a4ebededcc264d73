"""Names of Gemma 4's weights in files."""

from collections.abc import Mapping

from models.checkpoints.naming import WeightNames
from models.checkpoints.sources import Size, Source
from models.families.gemma4.config import Gemma4Config
from models.text.config import TextConfig
from models.text.moe_weights import expert_sources
from models.text.sizes import STACKED, layer_numbers, stack_rules, text_sizes

__all__ = ["MODEL", "gemma4_names", "names_with_text"]

MODEL = r"(?:model\.)?"
"""Keys of older files begin with this, or do not."""

_TOWER = rf"{MODEL}vision_tower\."
_LAYER = _TOWER + r"encoder\.layers\.(\d+)\."
_HERE = r"vision.encoder.layers.\1."
_LINEAR = r"(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.(?:gate|up|down)_proj)\."
_RANGES = tuple(f"{side}_{end}" for side in ("input", "output") for end in ("min", "max"))

# Norms of a block in files, and here.
_NORMS = {
    "input_layernorm": "layer_norm1",
    "post_attention_layernorm": "post_norm1",
    "pre_feedforward_layernorm": "layer_norm2",
    "post_feedforward_layernorm": "post_norm2",
}
_PER_LAYER = "embed_tokens_per_layer|per_layer_model_projection|per_layer_projection_norm"

_RULES = (
    *((_LAYER + rf"{file}\.", f"{_HERE}{here}.") for file, here in _NORMS.items()),
    (_LAYER + r"self_attn\.o_proj\.(?:linear\.)?", f"{_HERE}self_attn.out_proj."),
    (_LAYER + _LINEAR + r"(?:linear\.)?", rf"{_HERE}\2."),
    (_LAYER, _HERE),
    (_TOWER + r"patch_embedder\.input_proj\.", "vision.patch_embedding."),
    (_TOWER + r"patch_embedder\.", "vision."),
    (_TOWER + "std_", "projector.std_"),
    (MODEL + r"embed_vision\.", "projector."),
)
_TEXT_RULES = (
    (r"lm_head\.", "text.lm_head."),
    (rf"{MODEL}language_model\.({_PER_LAYER})\.", r"text.per_layer.\1."),
    (rf"{MODEL}language_model\.", "text."),
)

_BLOCK = r"vision\.encoder\.layers\.(\d+)\."
_FILE = r"model.vision_tower.encoder.layers.\1."
_PUBLISHED = (
    *((_BLOCK + rf"{here}\.", f"{_FILE}{file}.") for file, here in _NORMS.items()),
    (_BLOCK + r"self_attn\.out_proj\.weight", f"{_FILE}self_attn.o_proj.linear.weight"),
    (_BLOCK + r"self_attn\.out_proj\.", f"{_FILE}self_attn.o_proj."),
    (_BLOCK + _LINEAR + "weight", rf"{_FILE}\2.linear.weight"),
    (_BLOCK, _FILE),
    (r"vision\.patch_embedding\.", "model.vision_tower.patch_embedder.input_proj."),
    (r"vision\.", "model.vision_tower.patch_embedder."),
    (r"projector\.std_", "model.vision_tower.std_"),
    (r"projector\.", "model.embed_vision."),
)
_PUBLISHED_TEXT = (
    (r"text\.lm_head\.", "lm_head."),
    (r"text\.per_layer\.", "model.language_model."),
    (STACKED, "model.language_model.layers."),
    (r"text\.", "model.language_model."),
)


def gemma4_names(config: Gemma4Config) -> WeightNames:
    """Names of all weights of a model."""
    encoder, table = config.vision.encoder, "vision.position_embedding_table"
    special: dict[str, Source] = {}
    if encoder.clipped_linears:
        block = "vision.encoder.layers.{}."
        linears = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
        linears += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
        names = [f"{block}{linear}.{end}" for linear in linears for end in _RANGES]
        special = {name: Source(name, infinite=True) for name in names}
    sizes = (
        Size(
            "vision_config.num_hidden_layers", encoder.num_hidden_layers, "vision.encoder.layers."
        ),
        Size("vision_config.hidden_size", encoder.hidden_size, table, 2),
        Size("vision_config.position_embedding_size", config.vision.axis_table or 0, table, 1),
        Size(
            "vision_config.intermediate_size",
            encoder.intermediate_size,
            "vision.encoder.layers.0.mlp.up_proj.weight",
            0,
        ),
    )
    return names_with_text(config.text, _RULES, _PUBLISHED, sizes, special)


def names_with_text(
    text: TextConfig,
    rules: tuple[tuple[str, str], ...],
    published: tuple[tuple[str, str], ...],
    sizes: tuple[Size, ...],
    special: Mapping[str, Source] | None = None,
) -> WeightNames:
    """Names of a tower's weights, as fields of `WeightNames`, and those of the decoder's."""
    numbers, tied = layer_numbers(text), text.tie_word_embeddings
    sources = dict(special or {})
    if text.moe_beside_mlp is not None:
        for stack in text.stacks:
            experts = f"text.{stack}.{{}}.experts"
            own = numbers.get(f"text.{stack}")
            sources |= expert_sources(experts, text.moe_beside_mlp.moe_intermediate_size, own)[0]

    def is_unused(name: str) -> bool:
        if name == "text.lm_head.weight":
            return tied
        # Layers that read another layer's keys have projections of their own in files.
        shared = name.startswith("text.shared_") and ".self_attn." in name
        speech = name.removeprefix("model.").startswith(("audio_tower.", "embed_audio."))
        return speech or (shared and name.split(".")[4] in ("k_proj", "v_proj", "k_norm"))

    return WeightNames(
        rules=stack_rules(text, rf"{MODEL}language_model\.layers\.") + rules + _TEXT_RULES,
        published=published + _PUBLISHED_TEXT,
        sizes=(*text_sizes(text), *sizes),
        numbers=numbers,
        is_unused=is_unused,
        special=sources,
    )
