"""Where files hold the experts of a text decoder: all of a layer in one tensor, or one by one."""

from collections.abc import Mapping

from models.checkpoints.sources import Layout, Rows, Source
from models.layers.moe import MoeConfig
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
    stacks = [name for name in text.stacks if text.of_stack(name).moe is not None]
    of_stacks = [_of_stack(text.moe, f"text.{name}", layer_numbers(text)) for name in stacks]
    return tuple(
        {name: source for own in way for name, source in own.items()}
        for way in zip(*of_stacks, strict=True)
    )


def _of_stack(
    moe: MoeConfig, stack: str, numbers: Mapping[str, tuple[int, ...]]
) -> tuple[Mapping[str, Source], ...]:
    """`moe_alternatives` of one stack of layers."""
    own, mlp = numbers.get(stack), f"{stack}.{{}}.mlp"
    ways = expert_sources(f"{mlp}.experts", moe.moe_intermediate_size, own)
    more: dict[str, Source] = {}
    if moe.scoring_func == "sigmoid":
        bias = "e_score_correction_bias"
        more[f"{mlp}.{bias}"] = Source(f"{mlp}.gate.{bias}", numbers=own)
    if moe.shared_expert_gate:  # Qwen's name of what DeepSeek's files call shared_experts
        for part in ("gate_proj", "up_proj", "down_proj"):
            more[f"{mlp}.shared_experts.{part}.weight"] = Source(
                f"{mlp}.shared_expert.{part}.weight", Layout.TRANSPOSED, numbers=own
            )
    return tuple({**way, **more} for way in ways)


def expert_sources(
    experts: str, inner: int, numbers: tuple[int, ...] | None
) -> tuple[Mapping[str, Source], ...]:
    """Where the experts of a stack of layers may lie, see `moe_alternatives`.

    Args:
        experts: canonical name of all of a layer's, with `{}` for its number.
        inner: hidden channels of an expert.
        numbers: see `models.checkpoints.sources.Source`.
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
