"""Families with video: processor files of tiny models, and prompts with clips for each."""

import dataclasses
import json
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
from tests.support.clip_configs import (
    LETTERS,
    SPECIAL,
    gemma4,
    glm,
    internvl,
    llava,
    qwen,
    smolvlm,
)

__all__ = ["CASES", "Case", "clip", "stand_in", "write_files"]


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
        qwen("qwen2_vl"),
        "Qwen2VLProcessor",
        _QWEN_IMAGES,
        {**_PATCHES, "min_pixels": 64, "max_pixels": 400},
        _QWEN_PROMPT,
        ((5, 30, 21, None),),
    ),
    "qwen2_5_vl: frames by a rate, a picture before and two clips": Case(
        qwen("qwen2_5_vl"),
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
        qwen("qwen3_vl"),
        "Qwen3VLProcessor",
        _QWEN_IMAGES,
        {**_PATCHES, "size": {"shortest_edge": 256, "longest_edge": 2048}, "fps": 1.5},
        _QWEN_PROMPT,
        ((11, 13, 17, 3.0),),
    ),
    "qwen3_vl: all frames, no rate": Case(
        qwen("qwen3_vl"),
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
        glm("glm4v", "glm4v_text"),
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
        glm("glm46v", "glm4v_text"),
        "Glm46VProcessor",
        _GLM_IMAGES,
        {**_PATCHES, "size": {"shortest_edge": 64, "longest_edge": 1600}},
        _GLM_PROMPT,
        ((29, 10, 17, 10.0),),
        tokenizer=_GLM_TOKENS,
    ),
    "glm46v: few frames of a long clip": Case(
        glm("glm46v", "glm4v_text"),
        "Glm46VProcessor",
        _GLM_IMAGES,
        {**_PATCHES, "size": {"shortest_edge": 64, "longest_edge": 1600}},
        2 * _GLM_PROMPT,
        ((8, 10, 17, 0.2), (5, 8, 8, 0.002)),
        tokenizer=_GLM_TOKENS,
    ),
    "glm46v: a time for every second frame, patches of one": Case(
        glm("glm46v", "glm4v_text", temporal_patch_size=1),
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
        gemma4(),
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
        llava("llava_onevision", "siglip_vision_model"),
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
        llava("llava_next_video", "clip_vision_model"),
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
        internvl(),
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
        smolvlm(),
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
