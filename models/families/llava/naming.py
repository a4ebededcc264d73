"""Names of weights that LLaVA and its kin share: a text decoder, a vision tower, a projector."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from models.checkpoints.naming import WeightNames
from models.checkpoints.sources import Source
from models.text.config import TextConfig
from models.text.fused_projections import fused_sources
from models.text.moe_weights import moe_alternatives
from models.text.sizes import STACKED, layer_numbers, stack_rules, text_sizes
from models.vision.tower_names import TowerNames
from models.vision.vit_weights import vit_names

__all__ = ["llava_names"]

type Rules = tuple[tuple[str, str], ...]

_LAYERS = r"(?:model\.)?language_model\.(?:model\.)?layers\."
_RULES = (
    (r"(model\.)?language_model\.lm_head\.|lm_head\.", "text.lm_head."),
    (r"(model\.)?language_model\.model\.|(model\.)?language_model\.", "text."),
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
)

# transformers 4 and 5 both write and read these names.
_PUBLISHED = (
    (r"text\.lm_head\.", "language_model.lm_head."),
    (STACKED, "language_model.model.layers."),
    (r"text\.", "language_model.model."),
    (r"vision\.", "vision_tower.vision_model."),
    (r"projector\.", "multi_modal_projector."),
)

# Buffers that older files carry.
_BUFFERS = re.compile(r"text\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class _Towers(Protocol):
    @property
    def text(self) -> TextConfig: ...
    @property
    def vision(self) -> Any: ...


def llava_names(
    config: _Towers,
    *,
    tower: Callable[[Any], TowerNames] = vit_names,
    rules: Rules = (),
    published: Rules = (),
    special: Mapping[str, Source] | None = None,
) -> WeightNames:
    """Names of the weights of a model with the parts `text`, `vision` and `projector`.

    Args:
        config: of the model.
        tower: names of the weights of its vision tower.
        rules, published, special: what goes before LLaVA's own in `WeightNames`.
    """

    vision = tower(config.vision)
    experts = moe_alternatives(config.text)

    def is_unused(name: str) -> bool:
        if name == "text.lm_head.weight":
            return config.text.tie_word_embeddings
        return bool(_BUFFERS.fullmatch(name)) or vision.is_unused(name)

    return WeightNames(
        rules=rules + vision.rules + stack_rules(config.text, _LAYERS) + _RULES,
        published=published + vision.published + _PUBLISHED,
        sizes=(*text_sizes(config.text), *vision.sizes),
        numbers=layer_numbers(config.text),
        is_unused=is_unused,
        special={
            **vision.special,
            **fused_sources(config.text),
            # One by one, as transformers 4 and 5 both read experts.
            **(dict(experts[-1]) if experts else {}),
            **(special or {}),
        },
        alternatives=experts,
    )
