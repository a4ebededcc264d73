"""Tiny Qwen-VL models and inputs for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

VOCAB, IMAGE, VIDEO, START, END = 48, 40, 41, 42, 43
PATCH, TEMPORAL, MERGE = 4, 2, 2

_VISION = {
    "qwen2_vl": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 16,
        "intermediate_size": 20,
        "out_hidden_size": 32,
        "window_size": 18,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 3,
    },
    "qwen3_vl": {
        "hidden_size": 16,
        "intermediate_size": 20,
        "out_hidden_size": 32,
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": [0, 2],
    },
}
_VISION["qwen3_vl_moe"] = _VISION["qwen3_vl"]
_VISION["qwen3_5"] = {
    name: value for name, value in _VISION["qwen3_vl"].items() if name != "deepstack_visual_indexes"
}

_VISION["qwen3_5_moe"] = _VISION["qwen3_5"]


def config_json(model_type: str, **changes: Any) -> dict[str, Any]:
    """A config.json of transformers 5; two or three layers everywhere."""
    vision = {
        "depth": 3,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
    }
    sections = {"mrope_section": [1, 2, 1]}
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, **sections},
    }
    if model_type.startswith("qwen3_vl"):
        text |= {"head_dim": 8}
    if model_type.startswith("qwen3_5"):
        linear, full = "linear_attention", "full_attention"
        text |= {
            "num_hidden_layers": 5,
            "layer_types": [linear, full, linear, linear, full],
            "head_dim": 16,
            "rope_parameters": text["rope_parameters"] | {"partial_rotary_factor": 0.5},
            "linear_conv_kernel_dim": 3,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 8,
        }
    if model_type == "qwen3_5_moe":
        text |= {"shared_expert_intermediate_size": 10}
    if model_type.endswith("moe"):
        text |= {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    return {
        "model_type": model_type,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "vision_config": vision | _VISION[model_type],
        "text_config": text,
        **changes,
    }


def visuals(grids: list[tuple[int, int, int]], rng: np.random.Generator) -> np.ndarray:
    """Random patches of pictures or clips."""
    patches = sum(t * h * w for t, h, w in grids)
    return rng.normal(size=(patches, 3 * TEMPORAL * PATCH**2)).astype(np.float32)


def batch(
    rows: list[list[Any]], rng: np.random.Generator, *, frames_apart: bool = False
) -> dict[str, np.ndarray]:
    """A processor's output for rows of parts, padded on the left.

    A part is a number of random text tokens, ("image", rows, columns) or ("video", frames, rows,
    columns), in patches.
    """
    images, videos, sequences = [], [], []
    for row in rows:
        ids: list[int] = []
        for part in row:
            if isinstance(part, int):
                ids += rng.integers(2, IMAGE, part).tolist()
                continue
            kind, *grid = part
            frames, height, width = grid if kind == "video" else (1, *grid)
            (videos if kind == "video" else images).append((frames, height, width))
            token = VIDEO if kind == "video" else IMAGE
            run = [token] * (height * width // MERGE**2)
            if kind == "video" and frames_apart:
                for _ in range(frames):
                    ids += [int(rng.integers(2, IMAGE)), START, *run, END]
            else:
                ids += [START, *run * frames, END]
        sequences.append(ids)
    width = max(map(len, sequences))
    input_ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = 1
    types = np.where(input_ids == IMAGE, 1, np.where(input_ids == VIDEO, 2, 0))
    arrays = {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": types}
    if images:
        arrays |= {"pixel_values": visuals(images, rng), "image_grid_thw": np.asarray(images)}
    if videos:
        arrays |= {
            "pixel_values_videos": visuals(videos, rng),
            "video_grid_thw": np.asarray(videos),
        }
    return arrays


def write_processor(folder: Path) -> None:
    """Processor files of Qwen2-VL's kind, with a chat template."""
    special = ["<|endoftext|>", "<|im_end|>"]
    words = ["<pad>", *special[1:], "user", "assistant", "what", "is", "this", "and", "that", "?"]
    vocab = {word: i for i, word in enumerate(words)}
    marks = {
        "<|im_start|>": 39,
        "<|image_pad|>": IMAGE,
        "<|video_pad|>": VIDEO,
        "<|vision_start|>": START,
        "<|vision_end|>": END,
    }
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocab | marks, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word) for word in ("<|im_end|>", *marks)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}<|im_start|> {{ message.role }} "
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}{% if part.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %} <|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
    )
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<pad>",
            "padding_side": "left",
            "chat_template": template,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 4,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "min_pixels": 64,
            "max_pixels": 1024,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
