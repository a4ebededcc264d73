"""Random models whose pictures, or tiles, have the size of the vision tower."""

import random
from typing import Any

import numpy as np

from tests.support.draws.batches import Tokens, counts_of_rows, prompt_rows, spread
from tests.support.draws.drawn import Drawn
from tests.support.draws.texts import ACTIVATIONS, KINDS, draw_text, frequencies_grow
from tests.support.draws.towers import draw_feature_layer, draw_tower
from tests.support.rows import padded_rows

__all__ = ["DRAWS"]


def _side(tower: dict[str, Any]) -> tuple[int, int]:
    """Pixels of a side of the tower, and its patches."""
    size, patch = (np.ravel(tower[name])[0].item() for name in ("image_size", "patch_size"))
    return size, size // patch


def _pixels(rng: random.Random, count: int, size: int) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(rng.randrange(2**32))
    pixels = numbers.normal(size=(count, 3, size, size)).astype(np.float32)
    return {"pixel_values": pixels} if count else {}


def _pictures(
    rng: random.Random,
    tokens: Tokens,
    size: int,
    features: int,
    *,
    around: tuple[list[int], list[int]] = ([], []),
    tiles: tuple[int, ...] = (1,),
) -> Any:
    """Rows of tokens and pixels; each picture has some tiles of so many features."""
    counts = counts_of_rows(rng)
    each = rng.choices(tiles, k=sum(counts))
    image, (before, behind) = tokens.marks[0], around
    visuals = [[*before, *[image] * (features * n), *behind] for n in each]
    return prompt_rows(rng, tokens, spread(counts, visuals)), _pixels(rng, sum(each), size), counts


def _llava(rng: random.Random, model_type: str = "llava") -> Drawn:
    tokens = Tokens.draw(rng)
    tower = draw_tower(rng, rng.choice(("clip_vision_model", "siglip_vision_model")))
    size, side = _side(tower)
    clip = tower["model_type"].startswith("clip")
    features = side**2 + clip
    content: dict[str, Any] = {
        "model_type": model_type,
        "vision_config": tower,
        "text_config": draw_text(rng, rng.choice(KINDS), tokens.vocabulary),
        "image_token_index": tokens.marks[0],
        "projector_hidden_act": rng.choice(ACTIVATIONS),
        "tie_word_embeddings": rng.random() < 0.3,
    }
    if model_type == "llava":
        strategy = rng.choice(("default", "full"))
        content |= {
            "vision_feature_layer": draw_feature_layer(rng, tower),
            "vision_feature_select_strategy": strategy,
            "multimodal_projector_bias": rng.random() < 0.7,
        }
        features -= strategy == "default"
    else:
        layers = np.ravel(draw_feature_layer(rng, tower)).tolist()
        content |= {
            "vision_feature_layer": layers,
            "vision_feature_layers": layers,
            "projector_layernorm_eps": rng.choice((1e-5, 1e-3)),
        }
        features -= 1
    rows, arrays, _ = _pictures(rng, tokens, size, features)
    return Drawn(content, lambda side: padded_rows(*rows, side=side) | arrays)


def _vipllava(rng: random.Random) -> Drawn:
    return _llava(rng, "vipllava")


def _deepseek_vl(rng: random.Random) -> Drawn:
    tokens = Tokens.draw(rng)
    tower = draw_tower(rng, "siglip_vision_model")
    size, side = _side(tower)
    content = {
        "model_type": "deepseek_vl",
        "vision_config": tower,
        "text_config": draw_text(rng, rng.choice(("llama", *KINDS)), tokens.vocabulary),
        "image_token_id": tokens.marks[0],
        "tie_word_embeddings": rng.random() < 0.5,
    }
    rows, arrays, _ = _pictures(rng, tokens, size, side**2)
    return Drawn(content, lambda side: padded_rows(*rows, side=side) | arrays)


def _aya_vision(rng: random.Random, model_type: str = "aya_vision") -> Drawn:
    tokens, merge = Tokens.draw(rng), rng.choice((1, 2, 3))
    tower = draw_tower(rng, "siglip_vision_model", side=merge * rng.choice((1, 2)))
    size, side = _side(tower)
    text = draw_text(rng, rng.choice(("cohere2", "cohere2", *KINDS)), tokens.vocabulary)
    content = {
        "model_type": model_type,
        "vision_config": tower,
        "text_config": text,
        "downsample_factor": merge,
        "tie_word_embeddings": rng.random() < 0.6,
    }
    if model_type == "aya_vision":
        content |= {
            "image_token_index": tokens.marks[0],
            "vision_feature_layer": draw_feature_layer(rng, tower, several=False),
            "adapter_layer_norm_eps": rng.choice((1e-6, 1e-2)),
        }
    else:
        content["image_token_id"] = tokens.marks[0]
    own = model_type == "cohere2_vision" or text["hidden_size"] % 2
    if own or rng.random() < 0.5:
        content["alignment_intermediate_size"] = rng.choice((6, 14))
    rows, arrays, _ = _pictures(rng, tokens, size, (side // merge) ** 2, tiles=(1, 2, 3))
    return Drawn(content, lambda side: padded_rows(*rows, side=side) | arrays)


def _cohere2_vision(rng: random.Random) -> Drawn:
    return _aya_vision(rng, "cohere2_vision")


def _internvl(rng: random.Random, model_type: str = "internvl") -> Drawn:
    tokens, merge = Tokens.draw(rng), rng.choice((1, 2, 4))
    tower = draw_tower(rng, f"{model_type}_vision", side=merge * rng.choice((1, 2)))
    size, side = _side(tower)
    content = {
        "model_type": model_type,
        "vision_config": tower,
        "text_config": draw_text(rng, rng.choice(KINDS), tokens.vocabulary),
        "image_token_id": tokens.marks[0],
        "downsample_ratio": 1 / merge,
        "projector_hidden_act": rng.choice(ACTIVATIONS),
        "vision_feature_layer": draw_feature_layer(rng, tower, several=False),
        "tie_word_embeddings": rng.random() < 0.5,
    }
    rows, arrays, _ = _pictures(rng, tokens, size, (side // merge) ** 2, tiles=(1, 2, 3))
    return Drawn(content, lambda side: padded_rows(*rows, side=side) | arrays)


def _qianfan_ocr(rng: random.Random) -> Drawn:
    return _internvl(rng, "qianfan_ocr")


def _gemma3(rng: random.Random) -> Drawn:
    tokens = Tokens.draw(rng)
    tower = draw_tower(rng, "siglip_vision_model", side=rng.choice((2, 3, 4, 5)))
    size, side = _side(tower)
    features = (side // rng.choice([n for n in (1, 2, 3) if n <= side])) ** 2
    image, begin, end, *_ = tokens.marks
    content = {
        "model_type": "gemma3",
        "vision_config": tower,
        "text_config": draw_text(rng, "gemma3_text", tokens.vocabulary),
        "image_token_index": image,
        "boi_token_index": begin,
        "eoi_token_index": end,
        "mm_tokens_per_image": features,
        "tie_word_embeddings": rng.random() < 0.5,
    }
    rows, arrays, _ = _pictures(rng, tokens, size, features, around=([begin], [end]))

    def batch(side: str) -> dict[str, np.ndarray]:
        found = padded_rows(*rows, side=side)
        return found | arrays | {"token_type_ids": (found["input_ids"] == image).astype(np.int64)}

    return Drawn(content, batch)


def _paligemma(rng: random.Random) -> Drawn:
    tokens = Tokens.draw(rng)
    tower = draw_tower(rng, "siglip_vision_model")
    size, side = _side(tower)
    text = draw_text(rng, rng.choice(("gemma", "gemma2")), tokens.vocabulary)
    if frequencies_grow(text):  # which the port refuses
        del text["rope_parameters"]
    content = {
        "model_type": "paligemma",
        "vision_config": tower,
        "text_config": text,
        "image_token_index": tokens.marks[0],
        "projection_dim": text["hidden_size"],
        "tie_word_embeddings": rng.random() < 0.5,
    }
    rows, arrays, _ = _pictures(rng, tokens, size, side**2)
    rows = [[*row, *rng.choices(tokens.words, k=3)] for row in rows]
    suffix = rng.choice((0, 1, 3))

    def batch(side: str) -> dict[str, np.ndarray]:
        found = padded_rows(*rows, side=side)
        types = np.zeros_like(found["input_ids"])
        for row, mask in zip(types, found["attention_mask"], strict=True):
            row[np.flatnonzero(mask)[len(np.flatnonzero(mask)) - suffix :]] = 1
        return found | arrays | {"token_type_ids": types}

    return Drawn(content, batch)


def _idefics3(rng: random.Random, model_type: str = "idefics3") -> Drawn:
    tokens, merge = Tokens.draw(rng), rng.choice((1, 2, 3))
    tower = draw_tower(rng, f"{model_type}_vision", side=merge * rng.choice((1, 2)))
    size, side = _side(tower)
    content = {
        "model_type": model_type,
        "vision_config": tower,
        "text_config": draw_text(rng, rng.choice(("llama", *KINDS)), tokens.vocabulary),
        "image_token_id": tokens.marks[0],
        "scale_factor": merge,
        "tie_word_embeddings": rng.random() < 0.5,
    }
    rows, arrays, counts = _pictures(rng, tokens, size, (side // merge) ** 2)
    if arrays:
        pixels = np.zeros((len(counts), max(counts), 3, size, size), np.float32)
        shown = np.zeros((len(counts), max(counts), size, size), np.int64)
        for row, own in enumerate(spread(counts, arrays["pixel_values"])):
            for i, tile in enumerate(own):
                pixels[row, i], shown[row, i] = tile, 1
                if rng.random() < 0.3:  # padding at the bottom or at the right
                    shown[row, i, rng.randint(1, size) :] = 0
                    shown[row, i, :, rng.randint(1, size) :] = 0
        arrays = {"pixel_values": pixels, "pixel_attention_mask": shown}
    return Drawn(content, lambda side: padded_rows(*rows, side=side) | arrays)


def _smolvlm(rng: random.Random) -> Drawn:
    return _idefics3(rng, "smolvlm")


DRAWS = {
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "deepseek_vl": _deepseek_vl,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "llava": _llava,
    "paligemma": _paligemma,
    "qianfan_ocr": _qianfan_ocr,
    "smolvlm": _smolvlm,
    "vipllava": _vipllava,
}
"""By model_type."""
