"""PaliGemma as a family: its processing, and the part of a prompt that sees itself both ways."""

from collections.abc import Mapping

import numpy as np

from models.families.base import Family, VisualInputs
from models.families.fixed_grid import FixedGridProcessing, read_pixels
from models.families.llava.naming import llava_names
from models.families.paligemma.config import PaliGemmaConfig
from models.families.paligemma.model import PaliGemmaModel

__all__ = ["FAMILY"]


def _visual_inputs(
    config: PaliGemmaConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    pixels, types = read_pixels(config, ids, arrays), arrays.get("token_type_ids")
    if types is None:
        raise ValueError(
            "token_type_ids is missing: PaliGemma's processor gives 0 at tokens that see each "
            "other (pictures and question) and 1 at those that see only what lies before them"
        )
    if types.shape != ids.shape or not np.isin(types, (0, 1)).all():
        raise ValueError(
            f"token_type_ids: expected zeros and ones {ids.shape}, got {types.dtype} {types.shape}"
        )
    return VisualInputs(pixels, attention_group=np.where(mask & (types == 0), 0, -1))


class _Processing(FixedGridProcessing):
    """Pictures, BOS, the question and a line break, in this order; every token sees all others."""

    adds_special_tokens = False

    def token_arrays(self, input_ids: np.ndarray) -> dict[str, np.ndarray]:
        """See `Processing.token_arrays`: no token of a prompt belongs to the answer."""
        return {"token_type_ids": np.zeros_like(input_ids)}

    def complete(self, prompt: str, placeholder: str, bos: str) -> str:
        """See `Processing.complete`: BOS behind the last picture, a line break at the end."""
        pictures, found, question = prompt.rpartition(placeholder)
        return prompt if bos and bos in question else f"{pictures}{found}{bos}{question}\n"

    def plain_prompt(self, placeholder: str, question: str, num_images: int) -> str:
        """See `Processing.plain_prompt`."""
        return placeholder * num_images + question


FAMILY = Family(
    read_config=PaliGemmaConfig.from_hf,
    build=PaliGemmaModel,
    weights=llava_names,
    array_names=("pixel_values", "token_type_ids"),
    unused_names=("labels",),
    visual_inputs=_visual_inputs,
    processing=_Processing,
    features_per_image=lambda config: config.image_tokens,
    visual_depends_on_question=True,
)
