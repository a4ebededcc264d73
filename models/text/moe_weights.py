"""Where files hold the experts of a text decoder: all of a layer in one tensor, or one by one."""

from collections.abc import Mapping

from models.checkpoints.weights import Layout, Rows, Source
from models.text.config import TextConfig
from models.text.sizes import layer_numbers

__all__ = ["expert_sources", "moe_alternatives"]


def moe_alternatives(text: TextConfig) -> tuple[Mapping[str, Source], ...]:
    """See `models.checkpoints.naming.WeightNames.alternatives`; none without experts.

    The first, [E, out, in], is how transformers 5 holds them; the second, [E, in, out], is the form
    of Qwen3-VL-MoE's files on the Hub; the third has each expert's matrices apart.
    """
    if text.moe is None:
        return ()
    numbers = layer_numbers(text).get("text.layers")
    ways = expert_sources("text.layers.{}.mlp.experts", text.moe.intermediate_size, numbers)
    if not text.moe.sigmoid:
        return ways
    bias = "e_score_correction_bias"
    of_choice = Source(f"text.layers.{{}}.mlp.gate.{bias}", numbers=numbers)
    return tuple({**way, f"text.layers.{{}}.mlp.{bias}": of_choice} for way in ways)


def expert_sources(
    experts: str, inner: int, numbers: tuple[int, ...] | None
) -> tuple[Mapping[str, Source], ...]:
    """Where the experts of a stack of layers may lie, see `moe_alternatives`.

    Args:
        experts: canonical name of all of a layer's, with `{}` for its number.
        inner: hidden channels of an expert.
        numbers: see `models.checkpoints.weights.Source`.
    """
    ways = []
    for layout, axis in ((Layout.SWAPPED, 1), (Layout.SAME, 2)):
        fused = f"{experts}.gate_up_proj"
        gate, up = (
            Source(
                fused,
                layout,
                rows=Rows(start, start + inner, 2 * inner, axis),
                numbers=numbers,
            )
            for start in (0, inner)
        )
        ways.append((gate, up, Source(f"{experts}.down_proj", layout, numbers=numbers)))
    parts = ("gate_proj", "up_proj", "down_proj")
    ways.append(
        tuple(
            Source(f"{experts}.{{}}.{part}.weight", Layout.TRANSPOSED, numbers=numbers)
            for part in parts
        )
    )
    return tuple(
        {f"{experts}.{part}": own for part, own in zip(parts, way, strict=True)} for way in ways
    )
