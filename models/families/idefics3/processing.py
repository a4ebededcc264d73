"""How prompts and pictures become arrays for Idefics3 and SmolVLM."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.idefics3.clips import SmolVLMClipProcessing, marks
from models.families.idefics3.config import Idefics3Config
from models.inputs.clip_processing import ClipProcessing
from models.inputs.image_settings import MOST_TILES, check_tile_size
from models.inputs.processing import Processing

__all__ = ["Idefics3Processing"]


class Idefics3Processing(Processing):
    """Each picture cut into tiles, row by row, and once more as a whole behind them."""

    shares_pixels = True

    def clips(self, config: Idefics3Config) -> ClipProcessing | None:
        """See `Processing.clips`; Idefics3 takes pictures alone."""
        return SmolVLMClipProcessing() if config.model_type == "smolvlm" else None

    def check(self, config: Idefics3Config, image_processor: Any) -> None:
        """See `Processing.check`: tiles are whole squares of features, and not too many."""
        config.tile_tokens(check_tile_size(image_processor))

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """See `Processing.check_picture`; `check` has seen to pictures that are resized first."""
        if image_processor.do_resize or not image_processor.do_image_splitting:
            return
        side = image_processor.max_image_size["longest_edge"]
        tiles = math.prod(-(-each // side) for each in picture.size)
        if tiles > MOST_TILES:
            raise ValueError(
                f"image: a picture of {picture.width} x {picture.height} is not resized (do_resize "
                f"is false) and makes {tiles} tiles of {side} x {side}; expected at most "
                f"{MOST_TILES}: resize it first"
            )

    def preprocess(
        self,
        config: Idefics3Config,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`; tiles of all pictures one after another."""
        output = self.run(image_processor, pictures, return_row_col_info=True, do_pad=True)
        (tiles,) = output["pixel_values"]
        around, whole = marks(tokenizer)
        run = placeholder * config.tile_tokens(tiles.shape[-1])
        texts = []
        for rows, columns in zip(output["rows"][0], output["cols"][0], strict=True):
            lines = [
                "".join(
                    f"{around}<row_{row + 1}_col_{column + 1}>{run}" for column in range(columns)
                )
                for row in range(rows)
            ]
            cut = "".join(f"{line}\n" for line in lines)
            texts.append(f"{cut}\n" * bool(cut) + f"{around}{whole}{run}{around}")
        # No pixel of these tiles is padding.
        return {"pixel_values": tiles}, texts
