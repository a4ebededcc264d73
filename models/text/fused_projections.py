"""Where parameters of a decoder lie whose files hold several projections as one tensor."""

from itertools import accumulate, pairwise

from models.checkpoints.sources import Layout, Rows, Source
from models.text.config import TextConfig
from models.text.sizes import layer_numbers

__all__ = ["fused_sources", "linear_sources"]


def fused_sources(text: TextConfig) -> dict[str, Source]:
    """Sources by canonical name (Phi-3); none where each projection has a tensor of its own."""
    if not text.fused_projections and not text.fused_mlp:
        return {}
    queries, keys = (
        heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads)
    )
    fused = {
        "self_attn.qkv_proj": {"q_proj": queries, "k_proj": keys, "v_proj": keys},
        "mlp.gate_up_proj": dict.fromkeys(("gate_proj", "up_proj"), text.intermediate_size),
    }
    if not text.fused_projections:
        del fused["self_attn.qkv_proj"]
    sources = {}
    for whole, parts in fused.items():
        block = f"text.layers.{{}}.{whole.partition('.')[0]}"
        edges = pairwise(accumulate(parts.values(), initial=0))
        for part, (start, stop) in zip(parts, edges, strict=True):
            sources[f"{block}.{part}.weight"] = Source(
                f"text.layers.{{}}.{whole}.weight",
                Layout.TRANSPOSED,
                rows=Rows(start, stop, sum(parts.values())),
            )
    return sources


def linear_sources(text: TextConfig) -> dict[str, Source]:
    """Sources of linear attention's queries, keys and values, which files hold as one tensor.

    Projections are apart where several devices share the heads, and there alone.
    """
    if text.linear is None:
        return {}
    block = "text.linear_layers.{}.linear_attn"
    numbers = layer_numbers(text).get("text.linear_layers")
    sources = {}
    for part, (start, stop) in text.linear.ranges.items():
        rows = Rows(start, stop, sum(text.linear.widths))
        sources[f"{block}.in_proj_{part}.weight"] = Source(
            f"{block}.in_proj_qkv.weight", Layout.TRANSPOSED, rows=rows, numbers=numbers
        )
        sources[f"{block}.conv1d_{part}.weight"] = Source(
            f"{block}.conv1d.weight", rows=rows, numbers=numbers
        )
    return sources
