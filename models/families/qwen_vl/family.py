"""Qwen-VL as a family: names of its weights, its inputs, and how the parts join."""

from models.checkpoints.naming import WeightNames
from models.families.base import Family
from models.families.qwen_vl.config import QwenVLConfig
from models.families.qwen_vl.model import QwenVLModel
from models.families.qwen_vl.processing import QwenVLProcessing
from models.families.qwen_vl.visual_inputs import ARRAY_NAMES, visual_inputs
from models.text.fused_projections import linear_sources
from models.text.moe_weights import moe_alternatives
from models.text.sizes import STACKED, layer_numbers, stack_rules, text_sizes
from models.vision.grid_weights import GRID_RULES, grid_published, grid_sizes, grid_special

__all__ = ["FAMILY"]

_RULES = (
    *GRID_RULES,
    (r"(?:model\.)?visual\.merger\.(?:ln_q|norm)\.", "projector.norm."),
    (r"(?:model\.)?visual\.merger\.(?:mlp\.0|linear_fc1)\.", "projector.linear_fc1."),
    (r"(?:model\.)?visual\.merger\.(?:mlp\.2|linear_fc2)\.", "projector.linear_fc2."),
    (r"(?:model\.)?visual\.deepstack_merger_list\.", "deepstack."),
    (r"(?:(?:model\.)?language_model\.)?lm_head\.", "text.lm_head."),
    (r"(?:model\.)?language_model\.(?:model\.)?|model\.", "text."),
)


def _published(model_type: str) -> tuple[tuple[str, str], ...]:
    """Names that transformers 4 and 5 both read: Qwen2's in the older two, modules' in Qwen3-VL."""
    if model_type in ("qwen2_vl", "qwen2_5_vl"):
        start, text, merger = "", "model.", {"norm": "ln_q", "linear_fc1": "mlp.0"}
        merger["linear_fc2"] = "mlp.2"
    else:
        start, text, merger = "model.", "model.language_model.", {}
    parts = ("norm", "linear_fc1", "linear_fc2")
    return (
        (STACKED, f"{text}layers."),
        *grid_published(start, linear_in_names=not merger),
        *(
            (rf"projector\.{part}\.", f"{start}visual.merger.{merger.get(part, part)}.")
            for part in parts
        ),
        (r"deepstack\.", f"{start}visual.deepstack_merger_list."),
        (r"text\.lm_head\.", "lm_head."),
        (r"text\.", text),
    )


def _weights(config: QwenVLConfig) -> WeightNames:
    experts, tied = moe_alternatives(config.text), config.text.tie_word_embeddings
    # How files of the Hub hold experts: those of Qwen3-VL-MoE have their matrices transposed.
    written = 1 if config.model_type == "qwen3_vl_moe" else 0

    def is_unused(name: str) -> bool:
        # Qwen3.5's files also hold layers that predict several tokens at once.
        return (name == "text.lm_head.weight" and tied) or name.startswith("mtp.")

    return WeightNames(
        rules=stack_rules(config.text, r"model\.language_model\.layers\.") + _RULES,
        published=_published(config.model_type),
        sizes=(*text_sizes(config.text), *grid_sizes(config.vision)),
        numbers=layer_numbers(config.text),
        is_unused=is_unused,
        special={
            **grid_special(config.vision),
            **linear_sources(config.text),
            **(dict(experts[written]) if experts else {}),
        },
        alternatives=experts,
    )


FAMILY = Family(
    read_config=QwenVLConfig.from_hf,
    build=QwenVLModel,
    weights=_weights,
    array_names=ARRAY_NAMES,
    visual_inputs=visual_inputs,
    processing=QwenVLProcessing,
)
