"""config.json of tiny models with video, one function for each family, and their vocabulary."""

import string
from typing import Any

from tests.support.qwen_vl import config_json as qwen_config

__all__ = [
    "IDS",
    "LETTERS",
    "SPECIAL",
    "gemma4",
    "glm",
    "internvl",
    "llava",
    "qwen",
    "smolvlm",
]

LETTERS = ["<unk>", "<pad>", *sorted(string.printable)]
SPECIAL = (
    "<image>",
    "<video>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<fake_token_around_image>",
    "<global-img>",
    "<|begin_of_image|>",
    "<|image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|video|>",
    "<|end_of_video|>",
    "<|image>",
    "<image|>",
    "<|audio|>",
    "<|audio>",
    "<audio|>",
)
IDS = {token: len(LETTERS) + i for i, token in enumerate(SPECIAL)}
VOCAB = len(LETTERS) + len(SPECIAL)

_TEXT = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def _tower(**changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    return {"num_attention_heads": 2, "image_size": 12, "patch_size": 4, **sizes, **changes}


def qwen(model_type: str) -> dict[str, Any]:
    ids = {
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
    }
    config = qwen_config(model_type, **ids)
    config["text_config"] |= {"vocab_size": VOCAB}
    return config


def glm(model_type: str, text: str, **tower_changes: Any) -> dict[str, Any]:
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    ids = {name: IDS[token] for name, token in names.items()}
    tower = {"depth": 1, "hidden_size": 8, "num_heads": 1, "patch_size": 4, "image_size": 20}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 1]}
    own = {"model_type": text, "rope_parameters": rope | {"partial_rotary_factor": 1.0}}
    return {
        "model_type": model_type,
        **ids,
        "vision_config": tower | {"out_hidden_size": 16, "intermediate_size": 8} | tower_changes,
        "text_config": _TEXT | own,
    }


def gemma4() -> dict[str, Any]:
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
        "audio_token_id": "<|audio|>",
    }
    tower = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4}
    blocks = {"patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 300}
    own = {"hidden_size_per_layer_input": 0, "head_dim": 8, "num_hidden_layers": 2}
    return {
        "model_type": "gemma4",
        **{name: IDS[token] for name, token in names.items()},
        "vision_config": tower | heads | blocks,
        "text_config": {**_TEXT, **own, "model_type": "gemma4_text"},
    }


def llava(model_type: str, tower: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "image_token_index": IDS["<image>"],
        "video_token_index": IDS["<video>"],
        "image_grid_pinpoints": [[12, 24], [24, 12]],
        "vision_config": _tower(model_type=tower),
        "text_config": _TEXT,
    }


def internvl() -> dict[str, Any]:
    return {
        "model_type": "internvl",
        "image_token_id": IDS["<IMG_CONTEXT>"],
        "vision_config": _tower(image_size=[8, 8], patch_size=[4, 4]),
        "text_config": _TEXT | {"model_type": "qwen2"},
    }


def smolvlm() -> dict[str, Any]:
    return {
        "model_type": "smolvlm",
        "image_token_id": IDS["<image>"],
        "scale_factor": 2,
        "vision_config": _tower(image_size=16),
        "text_config": _TEXT,
    }
