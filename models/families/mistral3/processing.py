"""How prompts and pictures become arrays where a Pixtral tower looks at them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.mistral3.config import Mistral3Config
from models.inputs.image_settings import check_longest_edge
from models.inputs.processing import Processing

__all__ = ["PixtralProcessing"]

_ROW_END, _IMAGE_END = "[IMG_BREAK]", "[IMG_END]"


class PixtralProcessing(Processing):
    """Each picture resized to whole blocks; its tokens in rows, each with a token behind it."""

    def placeholder(self, config: Mistral3Config, tokenizer: Any) -> str:
        """See `Processing.placeholder`; the tokens that end rows have to exist."""
        self.check_tokens(tokenizer, _ROW_END, _IMAGE_END)
        return super().placeholder(config, tokenizer)

    def check(self, config: Mistral3Config, image_processor: Any) -> None:
        """See `Processing.check`: pictures of any size that fits the memory."""
        check_longest_edge(image_processor)

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """See `Processing.check_picture`; `check` has seen to the largest area already."""
        size = image_processor.size
        most = (size["longest_edge"] or size["width"], size["longest_edge"] or size["height"])
        shrunk = max(side / limit for side, limit in zip(picture.size, most, strict=True))
        if image_processor.do_resize and min(picture.size) < shrunk:
            raise ValueError(
                f"image: a picture of {picture.width} x {picture.height} has no pixel left across "
                f"once it fits {most[0]} x {most[1]} (preprocessor_config.json: size): crop it"
            )

    def preprocess(
        self,
        config: Mistral3Config,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        # As transformers' processor: sides are multiples of a block, whatever the file says.
        side = config.block_size
        output = self.run(image_processor, pictures, patch_size=side, do_pad=True)
        texts = []
        for rows, columns in (output["image_sizes"] // side).tolist():
            row = placeholder * columns
            texts.append((row + _ROW_END) * (rows - 1) + row + _IMAGE_END)
        return output, texts

    def join(self, prompts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `Processing.join`; pictures are padded to the largest of all prompts."""
        height, width = np.max([each["pixel_values"].shape[2:] for each in prompts], axis=0)

        def padded(pixels: np.ndarray) -> np.ndarray:
            missing = [(0, height - pixels.shape[2]), (0, width - pixels.shape[3])]
            return np.pad(pixels, [(0, 0), (0, 0), *missing])

        return super().join(
            [each | {"pixel_values": padded(each["pixel_values"])} for each in prompts]
        )
