"""InternVL as a family: names of its weights, its processing, and how the parts join."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from models.checkpoints.naming import WeightNames
from models.checkpoints.sources import Source
from models.families.base import Family
from models.families.fixed_grid import TileProcessing, bucketed_pixels
from models.families.internvl.config import InternVLConfig
from models.families.internvl.model import InternVLModel
from models.families.llava.naming import llava_names
from models.inputs.clip_processing import ClipProcessing, frame_pixels
from models.inputs.clip_settings import ClipSettings
from models.inputs.clips import ReadClip

__all__ = ["FAMILY", "InternVLProcessing", "internvl_names", "published_tower"]

_START, _END = "<img>", "</img>"

_TOWER = r"(model\.)?vision_tower\."
_LAYER = _TOWER + r"encoder\.layer\.(\d+)\."
_RULES = (
    (_LAYER + r"attention\.projection_layer\.", r"vision.encoder.layers.\2.self_attn.out_proj."),
    (_LAYER + r"attention\.", r"vision.encoder.layers.\2.self_attn."),
    (_LAYER + r"layernorm_before\.", r"vision.encoder.layers.\2.layer_norm1."),
    (_LAYER + r"layernorm_after\.", r"vision.encoder.layers.\2.layer_norm2."),
    (_LAYER, r"vision.encoder.layers.\2."),
    (_TOWER + r"embeddings\.cls_token\Z", "vision.embeddings.class_embedding"),
    (_TOWER + r"embeddings\.position_embeddings\Z", "vision.embeddings.position_embedding.weight"),
    (_TOWER + r"embeddings\.patch_embeddings\.projection\.", "vision.embeddings.patch_embedding."),
    (_TOWER + r"layernorm\.", "vision.post_layernorm."),
)

_OURS = r"vision\.encoder\.layers\.(\d+)\."


def published_tower(tower: str, layers: str) -> tuple[tuple[str, str], ...]:
    """Names of a tower's weights in files, which has its layers under `tower + layers`."""
    theirs = tower + layers + r"\1."
    return (
        (_OURS + r"self_attn\.out_proj\.", theirs + "attention.projection_layer."),
        (_OURS + r"self_attn\.", theirs + "attention."),
        (_OURS + r"layer_norm1\.", theirs + "layernorm_before."),
        (_OURS + r"layer_norm2\.", theirs + "layernorm_after."),
        (_OURS, theirs),
        (r"vision\.embeddings\.class_embedding\Z", tower + "embeddings.cls_token"),
        (
            r"vision\.embeddings\.position_embedding\.weight\Z",
            tower + "embeddings.position_embeddings",
        ),
        (
            r"vision\.embeddings\.patch_embedding\.",
            tower + "embeddings.patch_embeddings.projection.",
        ),
        (r"vision\.post_layernorm\.", tower + "layernorm."),
    )


_PUBLISHED = published_tower("vision_tower.", "encoder.layer.")

# Files have an axis for a batch and, for the class token, one for positions.
_SPECIAL = {
    source.name: source
    for source in (
        Source("vision.embeddings.class_embedding", leading=2),
        Source("vision.embeddings.position_embedding.weight", leading=1),
    )
}


def internvl_names(
    config: InternVLConfig,
    rules: tuple[tuple[str, str], ...] = _RULES,
    published: tuple[tuple[str, str], ...] = _PUBLISHED,
) -> WeightNames:
    """Names of an InternVL model's weights; `rules` and `published` go before LLaVA's."""
    names = llava_names(config, rules=rules, published=published, special=_SPECIAL)

    def is_unused(name: str) -> bool:
        return name == "vision.embeddings.mask_token" or names.is_unused(name)

    return dataclasses.replace(names, is_unused=is_unused)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClipSettings(ClipSettings):
    """Frames are taken from the middle of equal parts of a clip."""

    initial_shift: bool | float = True
    default_size: ClassVar[Mapping[str, int]] = {"height": 384, "width": 384}

    def spread(self, total: int, count: int) -> list[int]:
        """See `ClipSettings.spread`."""
        step = total / count
        shift = step / 2 if self.initial_shift is True else float(self.initial_shift)
        return np.arange(shift, total, step).astype(np.float32).astype(int).tolist()


class _ClipProcessing(ClipProcessing):
    """Each frame one tile, behind its number."""

    settings = _ClipSettings

    def placeholder(self, config: InternVLConfig, tokenizer: Any) -> str:
        """See `ClipProcessing.placeholder`; frames have the tokens of pictures."""
        return getattr(tokenizer, "video_token", None) or self.mark

    def preprocess(
        self,
        config: InternVLConfig,
        settings: _ClipSettings,
        clips: Sequence[ReadClip],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `ClipProcessing.preprocess`."""
        pixels = [frame_pixels(settings, clip.frames) for clip in clips]
        run = tokenizer.convert_ids_to_tokens(config.image_token_id) * config.image_tokens
        texts = [
            "\n".join(f"Frame{i + 1}: {_START}{run}{_END}" for i in range(len(each)))
            for each in pixels
        ]
        return {"pixel_values": np.concatenate(pixels)}, texts


class InternVLProcessing(TileProcessing):
    """Each picture cut into tiles, and once more as a whole where there are several."""

    shares_pixels = True

    def placeholder(self, config: InternVLConfig, tokenizer: Any) -> str:
        """See `Processing.placeholder`; the tokens around a picture have to exist."""
        self.check_tokens(tokenizer, _START, _END)
        return super().placeholder(config, tokenizer)

    def clips(self, config: InternVLConfig) -> ClipProcessing | None:
        """See `Processing.clips`."""
        return _ClipProcessing()

    def tiles_text(
        self, config: InternVLConfig, tiles: int, placeholder: str, tokenizer: Any
    ) -> str:
        """See `TileProcessing.tiles_text`."""
        return f"{_START}{placeholder * (config.image_tokens * tiles)}{_END}"


FAMILY = Family(
    read_config=InternVLConfig.from_hf,
    build=InternVLModel,
    weights=internvl_names,
    array_names=("pixel_values",),
    visual_inputs=bucketed_pixels,
    processing=InternVLProcessing,
)
