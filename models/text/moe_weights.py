"""Where files hold the experts of a text decoder: all of a layer in one tensor, or one by one."""

from collections.abc import Mapping

from models.checkpoints.weights import Layout, Rows, Source
from models.text.config import TextConfig

__all__ = ["moe_alternatives"]

_EXPERTS = "text.layers.{}.mlp.experts"


def moe_alternatives(text: TextConfig) -> tuple[Mapping[str, Source], ...]:
    """See `models.checkpoints.naming.WeightNames.alternatives`; none without experts.

    The first, [E, out, in], is how transformers 5 holds them; the second, [E, in, out], is the form
    of Qwen3-VL-MoE's files on the Hub; the third has each expert's matrices apart.
    """
    if text.moe is None:
        return ()
    inner = text.moe.intermediate_size
    ways = []
    for layout, axis in ((Layout.SWAPPED, 1), (Layout.SAME, 2)):
        fused = f"{_EXPERTS}.gate_up_proj"
        gate, up = (
            Source(fused, layout, rows=Rows(start, start + inner, 2 * inner, axis))
            for start in (0, inner)
        )
        ways.append(_named(gate, up, Source(f"{_EXPERTS}.down_proj", layout)))
    parts = ("gate_proj", "up_proj", "down_proj")
    apart = (Source(f"{_EXPERTS}.{{}}.{part}.weight", Layout.TRANSPOSED) for part in parts)
    return (*ways, _named(*apart))


def _named(gate: Source, up: Source, down: Source) -> dict[str, Source]:
    return {
        f"{_EXPERTS}.gate_proj": gate,
        f"{_EXPERTS}.up_proj": up,
        f"{_EXPERTS}.down_proj": down,
    }
