"""Gemma 3 as a family: its processing, and which tokens of a picture see each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.base import Family, VisualInputs
from models.families.fixed_grid import FixedGridProcessing, read_pixels
from models.families.gemma3.config import Gemma3Config
from models.families.gemma3.model import Gemma3Model
from models.families.llava.naming import llava_names
from models.inputs.pixels import token_runs

__all__ = ["FAMILY"]


def _visual_inputs(
    config: Gemma3Config, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    pixels, visual = read_pixels(config, ids, arrays), ids == config.image_token_id
    types = arrays.get("token_type_ids")
    if types is not None and not np.array_equal(types, visual):
        raise ValueError(
            f"token_type_ids: expected 1 at image tokens (id {config.image_token_id}) and 0 "
            f"elsewhere, {ids.shape}, as Gemma 3's processor gives them, or none"
        )
    return VisualInputs(pixels, attention_group=None if pixels is None else token_runs(visual))


class _Processing(FixedGridProcessing):
    """Each picture resized to the tower's square, its tokens between two of their own."""

    def placeholder(self, config: Gemma3Config, tokenizer: Any) -> str:
        """See `Processing.placeholder`: templates write the token that begins a picture."""
        return tokenizer.convert_ids_to_tokens(config.begin_image_id)

    def preprocess(
        self,
        config: Gemma3Config,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        # transformers' processor crops no parts unless a call asks it to, whatever the file says.
        pixels = self.run(image_processor, pictures, do_pan_and_scan=False)["pixel_values"]
        token, end = tokenizer.convert_ids_to_tokens([config.image_token_id, config.end_image_id])
        whole = f"\n\n{placeholder}{token * config.image_tokens}{end}\n\n"
        return {"pixel_values": pixels}, [whole] * len(pictures)


FAMILY = Family(
    read_config=Gemma3Config.from_hf,
    build=Gemma3Model,
    weights=llava_names,
    array_names=("pixel_values", "token_type_ids"),
    visual_inputs=_visual_inputs,
    processing=_Processing,
    features_per_image=lambda config: config.image_tokens,
)
