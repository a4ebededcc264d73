"""Where weight files show the sizes of a text decoder that config.json states."""

from models.checkpoints.sources import Rows, Size, Source
from models.text.config import TextConfig

__all__ = ["STACKED", "layer_numbers", "stack_rules", "table_rows", "table_sources", "text_sizes"]

STACKED = r"text\.(?:\w+_)?layers\."
"""Canonical names of all layers, whatever their stack."""


def layer_numbers(text: TextConfig) -> dict[str, tuple[int, ...]]:
    """Numbers in the files of the layers of each stack, where there are several."""
    stacks = text.stacks
    return {f"text.{name}": stacks[name] for name in stacks} if len(stacks) > 1 else {}


def table_rows(text: TextConfig) -> dict[str, int]:
    """Rows of the vocabulary's tables, padding of a mesh apart."""
    return {"embed_tokens": text.vocab_size + text.extra_embeddings, "lm_head": text.vocab_size}


def table_sources(text: TextConfig) -> dict[str, Source]:
    """Sources by canonical name of the vocabulary's tables, which have padding on a mesh."""
    return {
        (name := f"text.{table}.weight"): Source(name, rows=Rows(0, count, count))
        for table, count in table_rows(text).items()
    }


def stack_rules(text: TextConfig, prefix: str) -> tuple[tuple[str, str], ...]:
    """Rules for names of layers that lie in a stack of their own.

    Files number all layers together; `prefix` is a regular expression of what is before the number.
    """
    return tuple(
        (rf"{prefix}(?P<number>{'|'.join(map(str, layers))})\.", rf"text.{name}.\g<number>.")
        for name, layers in text.stacks.items()
        if name != "layers"
    )


def text_sizes(text: TextConfig) -> tuple[Size, ...]:
    """Sizes by canonical names of weights."""
    block = f"text.layers.{text.stacks['layers'][0]}"
    last = next(name for name, own in text.stacks.items() if text.num_hidden_layers - 1 in own)
    extra = text.extra_embeddings
    gates = 2 if text.attention_gate else 1
    queries = text.num_attention_heads * text.head_dim * gates
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
            f"text_config.num_attention_heads * head_dim{' * 2' if gates > 1 else ''}",
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
