"""The processor's files: how transformers turns an image and a prompt into model inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkq_apps.training.pictures import SIZE
from vkq_apps.training.prompts import CHAT_TEMPLATE, IMAGE_TOKEN
from vkq_apps.training.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "save_processor", "write_json"]

# CLIP's.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

_IMAGE_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": SIZE},
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(PIXEL_MEAN),
    "image_std": list(PIXEL_STD),
}

_PROCESSOR: dict[str, Any] = {
    "processor_class": "LlavaProcessor",
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "image_token": IMAGE_TOKEN,
}


def save_processor(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """Writes tokenizer, image processor and processor files that transformers 4 and 5 read.

    `tokenizer`: the recipe's own by default.
    """
    (tokenizer or build_tokenizer()).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    # The class's name in transformers 4, which transformers 5 knows too.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "LlavaProcessor"}
    settings.pop("backend", None)
    settings.pop("is_local", None)
    if not settings.get("extra_special_tokens"):
        settings.pop("extra_special_tokens", None)  # transformers 4 wants a dictionary there
    write_json(file, settings)
    write_json(
        folder / "preprocessor_config.json",
        _IMAGE_PROCESSOR | {"processor_class": "LlavaProcessor"},
    )
    write_json(folder / "processor_config.json", _PROCESSOR)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes an object, indented."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
