"""Where weight files show the sizes of a text decoder that config.json states."""

from models.checkpoints.weights import Size
from models.text.config import TextConfig

__all__ = ["layer_numbers", "text_sizes"]


def layer_numbers(text: TextConfig) -> dict[str, tuple[int, ...]]:
    """Numbers in the files of the layers of each stack, where there are several."""
    if not text.cross_layers:
        return {}
    return {"text.layers": text.self_layers, "text.cross_layers": text.cross_layers}


def text_sizes(text: TextConfig) -> tuple[Size, ...]:
    """Sizes by canonical names of weights."""
    block = f"text.layers.{text.self_layers[0]}"
    last = "cross_layers" if text.num_hidden_layers - 1 in text.cross_layers else "layers"
    extra = text.extra_embeddings
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    table = "text.embed_tokens.weight"
    return (
        Size("text_config.num_hidden_layers", text.num_hidden_layers, f"text.{last}."),
        Size(
            f"text_config.vocab_size{f' + {extra}' if extra else ''}",
            text.vocab_size + extra,
            table,
            0,
        ),
        Size("text_config.hidden_size", text.hidden_size, table, 1),
        _mlp_size(text, f"{block}.mlp"),
        Size(
            "text_config.num_attention_heads * head_dim",
            queries,
            f"{block}.self_attn.q_proj.weight",
            0,
        ),
        Size(
            "text_config.num_key_value_heads * head_dim",
            keys,
            f"{block}.self_attn.k_proj.weight",
            0,
        ),
    )


def _mlp_size(text: TextConfig, mlp: str) -> Size:
    if text.moe is not None:
        return Size("text_config.num_experts", text.moe.num_experts, f"{mlp}.gate.weight", 0)
    size = text.intermediate_size
    return Size("text_config.intermediate_size", size, f"{mlp}.up_proj.weight", 0)
