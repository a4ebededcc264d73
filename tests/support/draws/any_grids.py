"""Random models whose pictures have any size: grids of patches."""

import random
from functools import partial
from typing import Any

import numpy as np

from tests.support.draws.batches import Tokens, counts_of_rows, prompt_rows, spread
from tests.support.draws.drawn import Drawn
from tests.support.draws.texts import ACTIVATIONS, KINDS, draw_text
from tests.support.draws.towers import draw_feature_layer
from tests.support.rows import padded_rows

__all__ = ["DRAWS", "normal"]


def normal(rng: random.Random, *shape: int) -> np.ndarray:
    numbers = np.random.default_rng(rng.randrange(2**32))
    return numbers.normal(size=shape).astype(np.float32)


def _mistral3(rng: random.Random, model_type: str = "mistral3") -> Drawn:
    tokens = Tokens.draw(rng)
    heads, channels, patch = rng.choice((1, 2, 3)), rng.choice((4, 6, 8)), rng.choice((2, 3, 4))
    merge = 1 if model_type == "llava" else rng.choice((1, 2, 3))
    lighton = model_type == "lighton_ocr"
    image, line, end, *_ = tokens.marks
    tower = {
        "model_type": "pixtral",
        "hidden_size": heads * channels,
        "intermediate_size": rng.choice((7, 12)),
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "num_attention_heads": heads,
        "image_size": 12 * patch,
        "patch_size": patch,
        "hidden_act": rng.choice(ACTIVATIONS),
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice((50.0, 1e4))},
    }
    layer = draw_feature_layer(rng, tower, several=False)
    content = {
        "model_type": model_type,
        "vision_config": tower,
        "text_config": draw_text(
            rng, rng.choice(("mistral", *(k for k in KINDS if k != "cohere2"))), tokens.vocabulary
        ),
        "image_token_index": image,
        "projector_hidden_act": rng.choice(ACTIVATIONS),
        "multimodal_projector_bias": rng.random() < 0.5,
        "vision_feature_layer": layer if model_type == "llava" else rng.choice((layer, [layer])),
        "tie_word_embeddings": rng.random() < 0.3,
    }
    if model_type == "llava":
        content["vision_feature_select_strategy"] = "full"
    else:
        content["spatial_merge_size"] = merge
    if lighton:
        names = ("image_token_index", "projector_hidden_act", "multimodal_projector_bias")
        for name in (*names, "vision_feature_layer"):
            content.pop(name)
        content["image_token_id"] = image
    counts = counts_of_rows(rng)
    # A batch of one visual token fails in transformers.
    sides = range(1, 12 // merge + 1)
    grids = [(rng.choice(sides), rng.choice(sides[1:])) for _ in range(sum(counts))]
    visuals = [[*(([image] * columns + [line]) * rows)[:-1], end] for rows, columns in grids]
    if lighton:
        visuals = [[image] * (rows * columns) for rows, columns in grids]
    rows, arrays = prompt_rows(rng, tokens, spread(counts, visuals)), {}
    if grids:
        sizes = np.array(grids) * merge * patch
        if lighton:  # a rim of patches that makes no block, within the positions that there are
            rim = [[rng.randrange(merge * patch) for _ in range(2)] for _ in grids]
            sizes = np.minimum(sizes + rim, 12 * patch)
        pixels = np.zeros((len(grids), 3, *sizes.max(0)), np.float32)
        for picture, (height, width) in zip(pixels, sizes, strict=True):
            picture[:, :height, :width] = normal(rng, 3, height, width)
        arrays = {"pixel_values": pixels, "image_sizes": sizes}
    return Drawn(content, lambda side: padded_rows(*rows, side=side) | arrays)


def _patches(rng: random.Random, vision: dict[str, Any], grids: list[Any]) -> np.ndarray:
    width = 3 * vision.get("temporal_patch_size", 2) * vision["patch_size"] ** 2
    return normal(rng, sum(int(np.prod(grid)) for grid in grids), width)


def _grid_tower(rng: random.Random, model_type: str, width: int) -> dict[str, Any]:
    heads, channels = rng.choice((1, 2, 3)), rng.choice((4, 8))
    merge, patch, depth = rng.choice((1, 2, 3)), rng.choice((2, 3, 4)), rng.choice((1, 2, 3))
    found: dict[str, Any] = {
        "depth": depth,
        "num_heads": heads,
        "hidden_size": heads * channels,
        "hidden_act": rng.choice(ACTIVATIONS),
        "patch_size": patch,
        "spatial_merge_size": merge,
        "temporal_patch_size": rng.choice((1, 2, 3)),
    }
    if rng.random() < 0.3:
        found["rope_parameters"] = {"rope_type": "axial", "rope_theta": rng.choice((50.0, 1e3))}
    layers = sorted(rng.sample(range(depth), rng.randint(0, depth)))
    if model_type == "qwen2_vl":
        return found | {
            "hidden_size": width,
            "embed_dim": heads * channels,
            "mlp_ratio": rng.choice((1, 3)),
        }
    found |= {"out_hidden_size": width, "intermediate_size": rng.choice((7, 12))}
    if model_type == "qwen2_5_vl":
        return found | {
            "window_size": merge * patch * rng.choice((1, 2, 3)) + rng.choice((0, 1)),
            "fullatt_block_indexes": layers,
            "tokens_per_second": rng.choice((1, 2, 25)),
        }
    if model_type.startswith("qwen3"):
        found["num_position_embeddings"] = rng.choice((1, 4, 9, 49))
        if not model_type.startswith("qwen3_5"):
            found["deepstack_visual_indexes"] = layers
        return found
    return found | {
        "attention_bias": rng.random() < 0.5,
        "image_size": patch * rng.choice((1, 3, 5)) + rng.choice((0, 1)),
        "rms_norm_eps": rng.choice((1e-5, 1e-3)),
    }


def _with_sections(rng: random.Random, text: dict[str, Any]) -> None:
    """Adds M-RoPE's sections to the settings of RoPE."""
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    rope = text.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 100.0})
    pairs = int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
    first, second = sorted(rng.choices(range(pairs + 1), k=2))
    rope["mrope_section"] = [first, second - first, pairs - second]


def _qwen(rng: random.Random, model_type: str) -> Drawn:
    tokens = Tokens.draw(rng)
    kind = f"{model_type}_text"
    if model_type == "glm46v":
        kind = rng.choice(("glm4v_text", "glm4v_moe_text"))
    text = draw_text(rng, kind, tokens.vocabulary)
    _with_sections(rng, text)
    vision = _grid_tower(rng, model_type, text["hidden_size"])
    image, video, start, end, clip, clip_end = tokens.marks
    glm = model_type.startswith("glm")
    content: dict[str, Any] = {
        "model_type": model_type,
        "vision_config": vision,
        "text_config": text,
        "image_token_id": image,
        "video_token_id": video,
        "tie_word_embeddings": rng.random() < 0.3,
    }
    names = (
        ("image_start_token_id", "image_end_token_id")
        if glm
        else ("vision_start_token_id", "vision_end_token_id")
    )
    content |= dict(zip(names, (start, end), strict=True))
    if glm:
        content |= {"video_start_token_id": clip, "video_end_token_id": clip_end}
    merge, counts = vision["spatial_merge_size"], counts_of_rows(rng)
    share = rng.choice((0, 1)) if glm else 0.4  # transformers' GLM takes no batch with both
    apart = glm or model_type.startswith("qwen3")
    images, clips, visuals = [], [], []
    for _ in range(sum(counts)):
        grid = (1, merge * rng.randint(1, 4), merge * rng.randint(1, 4))
        is_clip = rng.random() < share
        if is_clip:
            grid = (rng.randint(1, 4), *grid[1:])
        (clips if is_clip else images).append(grid)
        run = [video if is_clip and not glm else image] * (grid[1] * grid[2] // merge**2)
        if is_clip and apart:
            frames = [[start, *run, end, rng.choice(tokens.words)] for _ in range(grid[0])]
            inside = [token for frame in frames for token in frame]
            visuals.append([clip, *inside, clip_end] if glm else inside)
        else:
            visuals.append([start, *run * grid[0], end])
    rows = prompt_rows(rng, tokens, spread(counts, visuals))
    arrays: dict[str, np.ndarray] = {}
    if images:
        arrays |= {
            "pixel_values": _patches(rng, vision, images),
            "image_grid_thw": np.array(images),
        }
    if clips:
        arrays |= {
            "pixel_values_videos": _patches(rng, vision, clips),
            "video_grid_thw": np.array(clips),
        }
        if model_type == "qwen2_5_vl" and rng.random() < 0.7:
            seconds = np.array([rng.uniform(0.3, 2) for _ in clips], np.float32)
            arrays["second_per_grid_ts"] = seconds

    def batch(side: str) -> dict[str, np.ndarray]:
        found = padded_rows(*rows, side=side)
        ids = found["input_ids"]
        types = np.where(ids == image, 1, np.where(ids == video, 2, 0))
        if glm:
            opened = (ids == clip).cumsum(-1) > (ids == clip_end).cumsum(-1)
            types = np.where(ids == image, np.where(opened, 2, 1), 0)
        return found | arrays | {"mm_token_type_ids": types}

    return Drawn(content, batch, positions=False)


def _paddleocr_vl(rng: random.Random) -> Drawn:
    tokens = Tokens.draw(rng)
    text = draw_text(rng, "paddleocr_vl_text", tokens.vocabulary)
    _with_sections(rng, text)
    heads, patch, merge = rng.choice((1, 2, 3)), rng.choice((2, 3, 4)), rng.choice((1, 2, 3))
    vision: dict[str, Any] = {
        "hidden_size": heads * rng.choice((4, 8)),
        "intermediate_size": rng.choice((7, 12)),
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "num_attention_heads": heads,
        "image_size": patch * rng.choice((1, 3, 5)) + rng.choice((0, 1)),
        "patch_size": patch,
        "spatial_merge_size": merge,
        "hidden_act": rng.choice(ACTIVATIONS),
        "layer_norm_eps": rng.choice((1e-6, 1e-3)),
    }
    if rng.random() < 0.3:
        vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": rng.choice((50.0, 1e3))}
    image, video, start, end, *_ = tokens.marks
    content = {
        "model_type": "paddleocr_vl",
        "vision_config": vision,
        "text_config": text,
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": rng.random() < 0.3,
    }
    counts = counts_of_rows(rng)
    grids = [(merge * rng.randint(1, 4), merge * rng.randint(1, 4)) for _ in range(sum(counts))]
    visuals = [[start, *[image] * (h * w // merge**2), end] for h, w in grids]
    rows, arrays = prompt_rows(rng, tokens, spread(counts, visuals)), {}
    if grids:
        arrays = {
            "pixel_values": normal(rng, sum(h * w for h, w in grids), 3, patch, patch),
            "image_grid_thw": np.array([(1, *grid) for grid in grids]),
        }

    def batch(side: str) -> dict[str, np.ndarray]:
        found = padded_rows(*rows, side=side)
        return found | arrays | {"mm_token_type_ids": (found["input_ids"] == image).astype(int)}

    return Drawn(content, batch, positions=False)


_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
DRAWS = {
    "mistral3": _mistral3,
    "lighton_ocr": partial(_mistral3, model_type="lighton_ocr"),
    "paddleocr_vl": _paddleocr_vl,
    "llava_pixtral": partial(_mistral3, model_type="llava"),
    **{
        name: partial(_qwen, model_type=name)
        for name in (*_QWEN, "glm4v", "glm46v", "glm4v_moe", "glm_ocr")
    },
}
"""By model_type."""
