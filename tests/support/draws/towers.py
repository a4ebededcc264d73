"""Random `vision_config`s over a fixed grid: legal, tiny and odd."""

import random
from typing import Any

from tests.support.draws.texts import ACTIVATIONS

__all__ = ["draw_feature_layer", "draw_tower"]


def draw_tower(rng: random.Random, kind: str, *, side: int | None = None) -> dict[str, Any]:
    """A `vision_config` of a `model_type`; `side` is the grid's, in patches."""
    heads, channels = rng.choice((1, 2, 3)), rng.choice((4, 5, 6))
    patch = rng.choice((3, 4, 5))
    side = rng.choice((2, 3, 4)) if side is None else side
    found: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": heads * channels,
        "intermediate_size": rng.choice((7, 12)),
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "num_attention_heads": heads,
        "image_size": patch * side + rng.choice((0, 0, patch - 1)),
        "patch_size": patch,
        "hidden_act": rng.choice(ACTIVATIONS),
        "layer_norm_eps": rng.choice((1e-6, 1e-5, 1e-3)),
    }
    if kind == "siglip_vision_model":
        found["vision_use_head"] = rng.random() < 0.5
    if kind == "clip_vision_model":
        found["projection_dim"] = rng.choice((3, 8))
    if kind in ("internvl_vision", "qianfan_ocr_vision"):
        for name in ("image_size", "patch_size"):
            found[name] = [found[name]] * 2
        found |= {
            "attention_bias": rng.random() < 0.5,
            "use_qk_norm": rng.random() < 0.5,
            "norm_type": rng.choice(("layer_norm", "rms_norm")),
            "use_mask_token": rng.random() < 0.3,
            "use_mean_pooling": rng.random() < 0.5,
        }
    return found


def draw_feature_layer(
    rng: random.Random, tower: dict[str, Any], *, several: bool = True
) -> int | list[int]:
    """`vision_feature_layer`: behind a block, counted from either end, or several of them."""
    depth = tower["num_hidden_layers"]
    one = [*range(1, depth + 1), *range(-depth, 0)]
    if several and rng.random() < 0.4:
        any_layer = [*range(depth + 1), *range(-depth - 1, 0)]
        return [rng.choice(one), *rng.choices(any_layer, k=rng.randint(0, 2))]
    return rng.choice(one)
