"""Random processors of families whose pictures keep their shapes, more or less."""

import random
from functools import partial
from typing import Any

from tests.support.draws import DRAWS
from tests.support.draws.prompts.served import Served, any_size
from tests.support.draws.prompts.squares import square, tower_sizes
from tests.support.draws.prompts.steps import steps

__all__ = ["GRIDS"]


def _pixtral(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    size, patch, _ = tower_sizes(content)
    merge = content.get("spatial_merge_size", 1)
    lighton = name == "lighton_ocr"
    largest = size // (patch * merge) * patch * merge
    edge = rng.randint(2 * patch * merge, largest)
    images = steps(rng) | {
        "image_processor_type": rng.choice(("PixtralImageProcessor", "PixtralImageProcessorFast")),
        "size": {"longest_edge": edge},
        "patch_size": rng.choice((patch, square(patch), 16)),
    }
    marks = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    names = dict(zip(("image_token", "image_break_token", "image_end_token"), marks, strict=True))
    if lighton:
        images["patch_size"] = patch * rng.choice((1, merge))
        images["size"] = {"longest_edge": rng.randint(3 * patch * merge, 12 * patch)}
    return Served(
        content,
        "LightOnOcrProcessor" if lighton else "PixtralProcessor",
        images,
        {
            "[IMG]": content["image_token_id" if lighton else "image_token_index"],
            "[IMG_BREAK]": None,
            "[IMG_END]": None,
        },
        "[IMG]",
        options={
            "patch_size": patch,
            "spatial_merge_size": merge,
            **({} if lighton else names),
        },
        names=names if lighton else {},
        nested=True,
        sizes=lambda rng: (rng.randint(9, 50), rng.randint(9, 50)),
    )


def _areas(rng: random.Random, vision: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Settings of Qwen-VL's kind, and sizes of pictures."""
    side = vision["patch_size"] * vision["spatial_merge_size"]
    least = rng.choice((1, 4, 30)) * rng.choice((side, side + 1)) * side
    most = least + rng.randint(2, 20) * side**2
    names = {
        "patch_size": vision["patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
    }
    found = steps(rng) | names
    if rng.random() < 0.2:
        return found | {"do_resize": False}, lambda rng: (
            side * rng.randint(1, 4),
            side * rng.randint(1, 3),
        )
    size = rng.choice(
        (
            {"min_pixels": least, "max_pixels": most},
            {"size": {"shortest_edge": least, "longest_edge": most}},
        )
    )
    return found | size, any_size


def _qwen(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    vision = content["vision_config"]
    images, sizes = _areas(rng, vision)
    texts = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    kind = rng.choice(("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"))
    processor = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}
    return Served(
        content,
        processor.get(name, "Qwen3VLProcessor"),
        images | {"image_processor_type": kind},
        {text: content[key] for key, text in texts.items()},
        "<|vision_start|><|image_pad|><|vision_end|>",
        sizes=sizes,
    )


def _paddleocr_vl(rng: random.Random) -> Served:
    content = DRAWS["paddleocr_vl"](rng).content
    images, sizes = _areas(rng, content["vision_config"] | {"temporal_patch_size": 1})
    texts = {
        "image_token_id": "<|IMAGE_PLACEHOLDER|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|IMAGE_START|>",
        "vision_end_token_id": "<|IMAGE_END|>",
    }
    return Served(
        content,
        "PaddleOCRVLProcessor",
        images | {"image_processor_type": "PaddleOCRVLImageProcessor"},
        {text: content[key] for key, text in texts.items()},
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        names={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        sizes=sizes,
    )


def _glm(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    images, sizes = _areas(rng, content["vision_config"])
    images = {key: value for key, value in images.items() if not key.endswith("pixels")} | (
        {"size": {"shortest_edge": images["min_pixels"], "longest_edge": images["max_pixels"]}}
        if "min_pixels" in images
        else {}
    )
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    texts = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    kind = "Glm46V" if name in ("glm46v", "glm_ocr") else "Glm4v"
    return Served(
        content,
        f"{kind}Processor",
        images | {"image_processor_type": f"{kind}ImageProcessor"},
        {text: content[key] for key, text in texts.items()},
        "<|begin_of_image|><|image|><|end_of_image|>",
        names=names,
        sizes=sizes,
    )


def _gemma4(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    vision, unified = content["vision_config"], name == "gemma4_unified"
    vision["mm_posemb_size" if unified else "position_embedding_size"] = 300
    kind = "Gemma4Unified" if unified else "Gemma4"
    names = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    ids = (
        *("image_token_id", "boi_token_id", "eoi_token_id"),
        *("audio_token_id", "boa_token_id", "eoa_token_index"),
    )
    special = {token: content[name] for token, name in zip(names.values(), ids, strict=True)}
    images = steps(rng) | {
        "image_processor_type": f"{kind}ImageProcessor",
        "patch_size": vision["patch_size"],
        "pooling_kernel_size": vision["pooling_kernel_size"],
        "max_soft_tokens": 70,
    }
    return Served(
        content,
        f"{kind}Processor",
        images,
        {**special, "<|video|>": content["video_token_id"]},
        "<|image|>",
        names=names,
        nested="all",
    )


def _mllama(rng: random.Random) -> Served:
    content = DRAWS["mllama"](rng).content
    side, _, _ = tower_sizes(content)
    vision = content["vision_config"]
    images = steps(rng) | {
        "image_processor_type": "MllamaImageProcessor",
        "size": square(side),
        "max_image_tiles": vision["max_num_tiles"],
    }
    return Served(
        content,
        "MllamaProcessor",
        images,
        {"<|image|>": content["image_token_index"], "<|python_tag|>": None},
        "<|image|>",
        nested=True,
        counts=((1,), (1, 1), (2,), (3,), (0, 0)),
        bos=True,
        written=True,
    )


_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
GRIDS = {
    **{name: partial(_pixtral, name=name) for name in ("mistral3", "lighton_ocr", "llava_pixtral")},
    **{name: partial(_qwen, name=name) for name in _QWEN},
    **{name: partial(_glm, name=name) for name in ("glm4v", "glm46v", "glm4v_moe", "glm_ocr")},
    "paddleocr_vl": _paddleocr_vl,
    **{name: partial(_gemma4, name=name) for name in ("gemma4", "gemma4_unified")},
    "mllama": _mllama,
}
"""By the names of `DRAWS`."""
