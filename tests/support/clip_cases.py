"""Families with video: processor files of tiny models, and prompts with clips for each."""

import dataclasses
import json
import string
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from models.families.registry import family_of
from models.layers.linear import Maker
from models.loading import read_config
from models.model import Model
from tests.support.qwen_vl import config_json as qwen_config

__all__ = ["CASES", "Case", "clip", "stand_in", "write_files"]

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


def _qwen(model_type: str) -> dict[str, Any]:
    ids = {
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
    }
    config = qwen_config(model_type, **ids)
    config["text_config"] |= {"vocab_size": VOCAB}
    return config


def _glm(model_type: str, text: str, **tower_changes: Any) -> dict[str, Any]:
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


def _gemma4() -> dict[str, Any]:
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


def _llava(model_type: str, tower: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "image_token_index": IDS["<image>"],
        "video_token_index": IDS["<video>"],
        "image_grid_pinpoints": [[12, 24], [24, 12]],
        "vision_config": _tower(model_type=tower),
        "text_config": _TEXT,
    }


def _internvl() -> dict[str, Any]:
    return {
        "model_type": "internvl",
        "image_token_id": IDS["<IMG_CONTEXT>"],
        "vision_config": _tower(image_size=[8, 8], patch_size=[4, 4]),
        "text_config": _TEXT | {"model_type": "qwen2"},
    }


def _smolvlm() -> dict[str, Any]:
    return {
        "model_type": "smolvlm",
        "image_token_id": IDS["<image>"],
        "scale_factor": 2,
        "vision_config": _tower(image_size=16),
        "text_config": _TEXT,
    }


class Case(NamedTuple):
    """A prompt with clips.

    Attributes:
        config: config.json. processor: the name of transformers' processor.
        images: preprocessor_config.json. videos: video_preprocessor_config.json.
        tokenizer: names of the tokenizer's own tokens. options: of transformers' processor.
        prompt: its text. pictures: heights and widths.
        clips: frames, height and width of each, and its frames per second.
    """

    config: dict[str, Any]
    processor: str
    images: dict[str, Any]
    videos: dict[str, Any]
    prompt: str
    clips: tuple[tuple[int, int, int, float | None], ...]
    pictures: tuple[tuple[int, int], ...] = ()
    tokenizer: Mapping[str, str] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})


_QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 64,
    "max_pixels": 1024,
}
_PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
_QWEN_PROMPT = "a <|vision_start|><|video_pad|><|vision_end|> b"
_GLM_IMAGES = {
    "image_processor_type": "Glm4vImageProcessor",
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 64, "longest_edge": 1600},
}
_GEMMA4_SIZES = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
_GLM_PROMPT = "<|begin_of_video|><|video|><|end_of_video|> b"
_GLM_TOKENS = {"image_token": "<|image|>", "video_token": "<|video|>"}
_SMALL = {"height": 12, "width": 12}

CASES = {
    "qwen2_vl: all frames, an odd number": Case(
        _qwen("qwen2_vl"),
        "Qwen2VLProcessor",
        _QWEN_IMAGES,
        {**_PATCHES, "min_pixels": 64, "max_pixels": 400},
        _QWEN_PROMPT,
        ((5, 30, 21, None),),
    ),
    "qwen2_5_vl: frames by a rate, a picture before and two clips": Case(
        _qwen("qwen2_5_vl"),
        "Qwen2_5_VLProcessor",
        _QWEN_IMAGES,
        {
            **_PATCHES,
            "size": {"shortest_edge": 64, "longest_edge": 400},
            "do_sample_frames": True,
            "fps": 2,
            "min_frames": 2,
            "max_frames": 6,
        },
        "<|image_pad|>" + 2 * _QWEN_PROMPT,
        ((9, 16, 24, 4.0), (7, 9, 40, 2.5)),
        ((20, 11),),
    ),
    "qwen3_vl: times between the frames": Case(
        _qwen("qwen3_vl"),
        "Qwen3VLProcessor",
        _QWEN_IMAGES,
        {**_PATCHES, "size": {"shortest_edge": 256, "longest_edge": 2048}, "fps": 1.5},
        _QWEN_PROMPT,
        ((11, 13, 17, 3.0),),
    ),
    "qwen3_vl: all frames, no rate": Case(
        _qwen("qwen3_vl"),
        "Qwen3VLProcessor",
        _QWEN_IMAGES,
        {
            **_PATCHES,
            "size": {"shortest_edge": 256, "longest_edge": 999},
            "do_sample_frames": False,
        },
        _QWEN_PROMPT,
        ((5, 6, 17, None),),
    ),
    "glm4v: a picture and two clips, one longer than max_duration": Case(
        _glm("glm4v", "glm4v_text"),
        "Glm4vProcessor",
        _GLM_IMAGES,
        {
            **_PATCHES,
            "size": {"shortest_edge": 64, "longest_edge": 3000},
            "fps": 1.5,
            "max_duration": 4,
        },
        "<|image|> a" + 2 * _GLM_PROMPT,
        ((9, 16, 24, 3.0), (31, 9, 20, 4.0)),
        ((20, 11),),
        tokenizer=_GLM_TOKENS,
    ),
    "glm46v: a short clip": Case(
        _glm("glm46v", "glm4v_text"),
        "Glm46VProcessor",
        _GLM_IMAGES,
        {**_PATCHES, "size": {"shortest_edge": 64, "longest_edge": 1600}},
        _GLM_PROMPT,
        ((29, 10, 17, 10.0),),
        tokenizer=_GLM_TOKENS,
    ),
    "glm46v: few frames of a long clip": Case(
        _glm("glm46v", "glm4v_text"),
        "Glm46VProcessor",
        _GLM_IMAGES,
        {**_PATCHES, "size": {"shortest_edge": 64, "longest_edge": 1600}},
        2 * _GLM_PROMPT,
        ((8, 10, 17, 0.2), (5, 8, 8, 0.002)),
        tokenizer=_GLM_TOKENS,
    ),
    "glm46v: a time for every second frame, patches of one": Case(
        _glm("glm46v", "glm4v_text", temporal_patch_size=1),
        "Glm46VProcessor",
        _GLM_IMAGES | {"temporal_patch_size": 1},
        {
            **_PATCHES,
            "temporal_patch_size": 1,
            "size": {"shortest_edge": 64, "longest_edge": 1600},
        },
        _GLM_PROMPT,
        ((12, 10, 17, 2.5),),
        tokenizer=_GLM_TOKENS,
    ),
    "gemma4: a picture between clips of unlike shapes": Case(
        _gemma4(),
        "Gemma4Processor",
        _GEMMA4_SIZES | {"image_processor_type": "Gemma4ImageProcessor"},
        {**_GEMMA4_SIZES, "num_frames": 3},
        "<|video|> a <|image|> b <|video|>",
        ((5, 16, 11, 0.02), (4, 9, 70, None)),
        ((30, 14),),
        tokenizer={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
    ),
    "llava_onevision: a picture between two clips": Case(
        _llava("llava_onevision", "siglip_vision_model"),
        "LlavaOnevisionProcessor",
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": _SMALL,
            "image_grid_pinpoints": [[12, 24], [24, 12]],
        },
        {"size": _SMALL, "do_sample_frames": True, "num_frames": 3},
        "<video> a <image> b <video>",
        ((5, 16, 11, None), (4, 30, 40, None)),
        ((30, 14),),
        options={"num_image_tokens": 9, "vision_feature_select_strategy": "full"},
    ),
    "llava_next_video: the middle of frames": Case(
        _llava("llava_next_video", "clip_vision_model"),
        "LlavaNextVideoProcessor",
        {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 12},
            "crop_size": _SMALL,
            "image_grid_pinpoints": [[12, 24], [24, 12]],
        },
        {"size": {"shortest_edge": 12}, "crop_size": _SMALL},
        "<video> a",
        ((3, 31, 16, None),),
        options={"patch_size": 6, "vision_feature_select_strategy": "default"},
    ),
    "internvl: clips and pictures in one array": Case(
        _internvl(),
        "InternVLProcessor",
        {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": {"height": 8, "width": 8},
            "max_patches": 4,
        },
        {"size": {"height": 8, "width": 8}, "do_sample_frames": True, "num_frames": 3},
        "<video> a <IMG_CONTEXT> b <video>",
        ((7, 16, 11, None), (4, 30, 40, None)),
        ((30, 14),),
        tokenizer={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        options={"image_seq_length": 1},
    ),
    "smolvlm: times before the frames": Case(
        _smolvlm(),
        "SmolVLMProcessor",
        {
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 32},
            "max_image_size": {"longest_edge": 16},
        },
        {
            "size": {"longest_edge": 32},
            "max_image_size": {"longest_edge": 16},
            "do_sample_frames": True,
            "video_sampling": {"fps": 1, "max_frames": 5, "video_size": {"longest_edge": 32}},
        },
        "a <video> b",
        ((23, 10, 14, 2.0),),
        options={"image_seq_len": 4},
    ),
}


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random frames [frames, height, width, 3]."""
    rng = np.random.default_rng([seed, frames, height, width])
    coarse = rng.integers(70, 186, (frames, -(-height // 3), -(-width // 3), 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 3, axis=1), 3, axis=2)[:, :height, :width]


def write_files(folder: Path, case: Case) -> None:
    """config.json and the processor's files; every letter is a token."""
    built = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(LETTERS)}, unk_token="<unk>")
    )
    built.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m)."), "isolated")
    built.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    built.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": case.config,
        "preprocessor_config.json": case.images,
        "video_preprocessor_config.json": case.videos,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "padding_side": "left",
            "extra_special_tokens": dict(case.tokenizer),
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def stand_in(folder: Path, case: Case) -> Model:
    """A model without weights, which `prepare` does not look at."""
    folder.mkdir(exist_ok=True)
    write_files(folder, case)
    config = read_config(folder)
    module = nnx.eval_shape(
        lambda: family_of(config.model_type).build(config, Maker.create(nnx.Rngs(0)))
    )
    return dataclasses.replace(Model.from_module(module), source=str(folder))
