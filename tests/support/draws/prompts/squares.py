"""Random processors of families whose pictures, or tiles, have the size of the vision tower."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.support.draws import DRAWS
from tests.support.draws.prompts.served import Served, any_size
from tests.support.draws.prompts.steps import steps

__all__ = ["SQUARES", "square", "tower_sizes"]


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def tower_sizes(content: dict[str, Any]) -> tuple[int, int, int]:
    """Pixels of a side of the tower, its patches' side, and patches of a side."""
    tower = content["vision_config"]
    size, patch = (np.ravel(tower[name])[0].item() for name in ("image_size", "patch_size"))
    return size, patch, size // patch


def _fixed(rng: random.Random, kind: str, side: int) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Settings of CLIP's or SigLIP's processor that end in squares, and sizes of pictures."""
    found = steps(rng)
    exact = lambda rng: (side, side)  # noqa: E731
    if kind == "siglip":
        found |= {
            "image_processor_type": rng.choice(("SiglipImageProcessor", "SiglipImageProcessorFast"))
        }
        found["size"] = square(side)
        if rng.random() < 0.2:
            return found | {"do_resize": False}, exact
        return found, any_size
    found["image_processor_type"] = rng.choice(("CLIPImageProcessor", "CLIPImageProcessorFast"))
    found["crop_size"] = rng.choice((side, square(side)))
    match rng.randint(0, 3):
        case 0:
            return found | {"do_resize": False}, any_size  # crops add black
        case 1:
            return found | {"do_center_crop": False, "size": square(side)}, any_size
    short = side + rng.choice((0, 0, 3))
    return found | {"size": rng.choice((short, {"shortest_edge": short}))}, any_size


def _llava(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    side, patch, _ = tower_sizes(content)
    clip = content["vision_config"]["model_type"].startswith("clip")
    images, sizes = _fixed(rng, "clip" if clip else "siglip", side)
    if rng.random() < 0.2:
        images, sizes = steps(rng, rim=True), any_size
        images |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
        images |= {"size": {"shortest_edge": side}, "crop_size": square(side)}
    return Served(
        content,
        "LlavaProcessor",
        images,
        {"<image>": content["image_token_index"]},
        "<image>",
        options={
            "patch_size": patch,
            "vision_feature_select_strategy": content.get(
                "vision_feature_select_strategy", "default"
            ),
            "num_additional_image_tokens": int(clip),
        },
        sizes=sizes,
    )


def _llava_next(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    side, patch, patches = tower_sizes(content)
    clip = content["vision_config"]["model_type"].startswith("clip")
    strategy = content["vision_feature_select_strategy"]
    onevision = name == "llava_onevision"
    images = steps(rng, rim=onevision) | {"image_grid_pinpoints": content["image_grid_pinpoints"]}
    special = {"<image>": content["image_token_index"]}
    if name != "llava_next":
        special["<video>"] = content["video_token_index"]
    if onevision:
        images |= {"image_processor_type": "LlavaOnevisionImageProcessor", "size": square(side)}
        options = {
            "num_image_tokens": patches**2 + (strategy == "default"),
            "vision_feature_select_strategy": strategy,
            "vision_aspect_ratio": content["vision_aspect_ratio"],
        }
    else:
        images |= {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": square(side),
        }
        options = {
            "patch_size": patch,
            "vision_feature_select_strategy": strategy,
            "num_additional_image_tokens": int(clip),
        }
    processor = {
        "llava_next": "LlavaNextProcessor",
        "llava_next_video": "LlavaNextVideoProcessor",
        "llava_onevision": "LlavaOnevisionProcessor",
    }[name]
    return Served(content, processor, images, special, "<image>", options=options, nested=onevision)


def _tiles(rng: random.Random, side: int) -> dict[str, Any]:
    most = rng.choice((1, 2, 4, 7, 12))
    return steps(rng) | {
        "image_processor_type": rng.choice(("GotOcr2ImageProcessor", "GotOcr2ImageProcessorFast")),
        "size": square(side),
        "crop_to_patches": rng.random() < 0.5,
        "min_patches": rng.randint(1, most),
        "max_patches": most,
    }


def _aya_vision(rng: random.Random) -> Served:
    content = DRAWS["aya_vision"](rng).content
    side, patch, _ = tower_sizes(content)
    around = {"<|START_OF_IMG|>": None, "<|END_OF_IMG|>": None}
    tile = {"TILE_GLOBAL": None, "TILE_1": None} if rng.random() < 0.5 else {}
    return Served(
        content,
        "AyaVisionProcessor",
        _tiles(rng, side),
        {"<|IMG_PATCH|>": content["image_token_index"], **around, **tile},
        "<image>",
        options={
            "patch_size": patch,
            "img_size": side // patch * patch,
            "downsample_factor": content["downsample_factor"],
        },
    )


def _cohere2_vision(rng: random.Random) -> Served:
    content = DRAWS["cohere2_vision"](rng).content
    side, _, patches = tower_sizes(content)
    names = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    images = _tiles(rng, side) | {
        "image_processor_type": rng.choice(
            ("Cohere2VisionImageProcessor", "Cohere2VisionImageProcessorFast")
        ),
        # Its square is how many tokens a tile has in prompts.
        "patch_size": patches // content["downsample_factor"],
    }
    return Served(
        content,
        "Cohere2VisionProcessor",
        images,
        dict.fromkeys(names.values()) | {"<|IMG_PATCH|>": content["image_token_id"]},
        "<|IMG_PATCH|>",
        names=names,
    )


def _deepseek_vl(rng: random.Random) -> Served:
    content = DRAWS["deepseek_vl"](rng).content
    side, _, patches = tower_sizes(content)
    images = steps(rng, rim=True) | {
        "image_processor_type": rng.choice(
            ("DeepseekVLImageProcessor", "DeepseekVLImageProcessorFast")
        ),
        "size": square(side),
        "min_size": rng.randint(1, side),
    }
    return Served(
        content,
        "DeepseekVLProcessor",
        images,
        {"<image_placeholder>": content["image_token_id"]},
        "<image_placeholder>",
        options={"num_image_tokens": patches**2},
        names={"image_token": "<image_placeholder>"},
    )


def _internvl(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    side, _, patches = tower_sizes(content)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    special = dict.fromkeys(names.values()) | {"<IMG_CONTEXT>": content["image_token_id"]}
    return Served(
        content,
        "InternVLProcessor" if name == "internvl" else "QianfanOCRProcessor",
        _tiles(rng, side),
        special,
        "<IMG_CONTEXT>" if name == "internvl" else "<image>",
        options={"image_seq_length": int(patches * content["downsample_ratio"]) ** 2},
        names=names,
    )


def _gemma3(rng: random.Random) -> Served:
    content = DRAWS["gemma3"](rng).content
    side, _, _ = tower_sizes(content)
    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    ids = ("boi_token_index", "eoi_token_index", "image_token_index")
    special = {token: content[name] for token, name in zip(names.values(), ids, strict=True)}
    images = steps(rng) | {"image_processor_type": "Gemma3ImageProcessor", "size": square(side)}
    return Served(
        content,
        "Gemma3Processor",
        images,
        special,
        "<start_of_image>",
        options={"image_seq_length": content["mm_tokens_per_image"]},
        names=names,
        nested="all",
    )


def _paligemma(rng: random.Random) -> Served:
    content = DRAWS["paligemma"](rng).content
    side, _, patches = tower_sizes(content)
    images, sizes = _fixed(rng, "siglip", side)
    return Served(
        content,
        "PaliGemmaProcessor",
        images | {"image_seq_length": patches**2},
        {"<image>": content["image_token_index"]},
        "<image>",
        names={"image_token": "<image>"},
        sizes=sizes,
        nested=True,
        leading=True,
        counts=((1,), (2, 1), (1, 3)),
        bos=True,
    )


def _idefics3(rng: random.Random, name: str) -> Served:
    content = DRAWS[name](rng).content
    side, _, patches = tower_sizes(content)
    tile = content["vision_config"]["patch_size"] * patches
    kind = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[name]
    images = steps(rng) | {
        "image_processor_type": f"{kind}ImageProcessor",
        "size": {"longest_edge": tile * rng.choice((1, 2, 3)) + rng.choice((0, 0, 2))},
        "max_image_size": {"longest_edge": rng.choice((tile, tile, side))},
        "do_image_splitting": rng.random() < 0.7,
    }
    tokens = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    special = {"<image>": content["image_token_id"], **dict.fromkeys(tokens)}
    special |= {f"<row_{i}_col_{j}>": None for i in range(1, 7) for j in range(1, 7)}
    return Served(
        content,
        "Idefics3Processor",
        images,
        special,
        "<image>",
        options={"image_seq_len": (patches // content["scale_factor"]) ** 2},
        nested="all",
    )


SQUARES = {
    **{name: partial(_llava, name=name) for name in ("llava", "vipllava")},
    **{
        name: partial(_llava_next, name=name)
        for name in ("llava_next", "llava_next_video", "llava_onevision")
    },
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "deepseek_vl": _deepseek_vl,
    **{name: partial(_internvl, name=name) for name in ("internvl", "qianfan_ocr")},
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    **{name: partial(_idefics3, name=name) for name in ("idefics3", "smolvlm")},
}
"""By the names of `DRAWS`."""
