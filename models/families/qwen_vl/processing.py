"""How Qwen-VL's prompts and pictures become arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.qwen_vl.clips import Qwen3ClipProcessing, QwenClipProcessing
from models.families.qwen_vl.config import QwenVLConfig
from models.inputs.clip_processing import ClipProcessing
from models.inputs.image_settings import check_area_settings, check_whole_blocks
from models.inputs.processing import Processing

__all__ = ["QwenVLProcessing"]


class QwenVLProcessing(Processing):
    """Each picture resized to whole blocks of patches; as many image tokens as it has blocks."""

    def picture_text(self, config: QwenVLConfig, tokenizer: Any) -> str:
        """See `Processing.picture_text`."""
        start, end = tokenizer.convert_ids_to_tokens(
            [config.vision_start_token_id, config.vision_end_token_id]
        )
        return f"{start}{self.placeholder(config, tokenizer)}{end}"

    def clips(self, config: QwenVLConfig) -> ClipProcessing | None:
        """See `Processing.clips`."""
        return Qwen3ClipProcessing() if config.frames_apart else QwenClipProcessing()

    def check(self, config: QwenVLConfig, image_processor: Any) -> None:
        """See `Processing.check`: patches are those of the tower, pictures have some size."""
        vision = config.vision
        check_area_settings(
            image_processor,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.merge,
        )

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """See `Processing.check_picture`; `check` has bounded the largest area already."""
        factor = image_processor.patch_size * image_processor.merge_size
        check_whole_blocks(image_processor, picture, factor)

    def preprocess(
        self,
        config: QwenVLConfig,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        output = self.run(image_processor, pictures)
        blocks = output["image_grid_thw"].prod(-1) // config.vision.merge**2
        return output, [placeholder * int(count) for count in blocks]
