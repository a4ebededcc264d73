"""Descendants of LLaVA, and LLaVA with other towers, against transformers' models."""

import numpy as np
import pytest

from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.rows import padded_rows

pytestmark = pytest.mark.parity

SIZE, IMAGE, VIDEO = 12, 60, 61
PINPOINTS = [[12, 24], [24, 12], [24, 24], [36, 12]]


def torch_model(
    kind="LlavaNext", *, tower="CLIPVisionConfig", text="LlamaConfig", text_changes=None, **changes
):
    import transformers

    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 4,
    }
    config = getattr(transformers, f"{kind}Config")(
        vision_config=getattr(transformers, tower)(**vision).to_dict(),
        text_config=getattr(transformers, text)(**sizes, **(text_changes or {})).to_dict(),
        image_token_index=IMAGE,
        **({"image_grid_pinpoints": PINPOINTS} if "Next" in kind or "One" in kind else {}),
        **changes,
    )
    return randomize(getattr(transformers, f"{kind}ForConditionalGeneration")(config))


def pixels(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 3, SIZE, SIZE)).astype(np.float32)


def count(theirs, sizes, **options):
    """How many tokens each picture has in transformers' model."""
    import torch

    with torch.no_grad():
        features = theirs.get_image_features(
            torch.tensor(pixels(len(sizes), 5)), torch.tensor(sizes), **options
        ).pooler_output
    return [len(each) for each in features]


@pytest.mark.parametrize(
    ("changes", "old_names"),
    [
        ({}, True),
        (
            {
                "tower": "SiglipVisionConfig",
                "text": "Qwen2Config",
                "vision_feature_layer": [-1, 0, -2],
                "vision_feature_select_strategy": "full",
            },
            False,
        ),
        ({"text": "MistralConfig", "tie_word_embeddings": True}, True),
        (
            {
                "tower": "SiglipVisionConfig",
                "text": "GraniteConfig",
                "vision_feature_layer": [-1, 1],
                "vision_feature_select_strategy": "full",
                "text_changes": {
                    "embedding_multiplier": 3.0,
                    "residual_multiplier": 0.4,
                    "attention_multiplier": 0.2,
                    "logits_scaling": 4.0,
                },
            },
            True,
        ),
    ],
)
def test_llava_next(changes, old_names, tmp_path):
    theirs = torch_model(**changes)
    ours = save(theirs, tmp_path, save_original_format=old_names)
    sizes = [[30, 11], [7, 40], [20, 20]]
    tokens = [[IMAGE] * n for n in count(theirs, sizes)]
    rows = padded_rows([3, tokens[0], 5, tokens[1], 7], [8, 9, 10], [4, tokens[2], 6])
    assert_parity(
        theirs, ours, rows | {"pixel_values": pixels(3, 5), "image_sizes": np.array(sizes)}
    )


def test_llava_onevision(tmp_path):
    theirs = torch_model(
        "LlavaOnevision",
        tower="SiglipVisionConfig",
        text="Qwen2Config",
        video_token_index=VIDEO,
        vision_aspect_ratio="anyres_max_2",
    )
    ours = save(theirs, tmp_path)
    sizes = [[21, 24], [9, 9], [30, 10], [24, 23]]
    each = [1, 2, 1]
    tokens = [[IMAGE] * n for n in count(theirs, sizes, batch_num_images=each)]
    clip = [VIDEO] * (3 * 4 + 1)
    rows = padded_rows(
        [3, tokens[0], 5, clip, 7], [8, 9, 10], [tokens[1], 4, tokens[2], 6], [clip, 2, tokens[3]]
    )
    arrays = {
        "pixel_values": pixels(4, 5),
        "image_sizes": np.array(sizes),
        "batch_num_images": np.array(each),
        "pixel_values_videos": pixels(2, 3),
    }
    assert_parity(theirs, ours, rows | arrays)


@pytest.mark.parametrize(("mode", "stride"), [("average", 2), ("max", 3)])
def test_llava_next_video(mode, stride, tmp_path):
    theirs = torch_model(
        "LlavaNextVideo",
        video_token_index=VIDEO,
        spatial_pool_mode=mode,
        spatial_pool_stride=stride,
        vision_feature_layer=[-1, -2] if mode == "max" else -2,
    )
    ours = save(theirs, tmp_path, save_original_format=mode == "max")
    sizes = [[30, 11], [20, 20]]
    first, second = ([IMAGE] * n for n in count(theirs, sizes))
    clip = [VIDEO] * (3 * (3 // stride) ** 2)
    rows = padded_rows([3, clip, 5, first, 7], [8, 9, 10], [second, 4, clip, 6])
    arrays = {
        "pixel_values": pixels(2, 5),
        "image_sizes": np.array(sizes),
        "pixel_values_videos": pixels(2, 3),
    }
    assert_parity(theirs, ours, rows | arrays)


@pytest.mark.parametrize(
    ("kind", "changes", "features"),
    [
        (
            "VipLlava",
            {
                # The name of transformers 5.24 and that of older ones.
                "vision_feature_layer": [-1, 0, 1],
                "vision_feature_layers": [-1, 0, 1],
                "projector_layernorm_eps": 1e-3,
            },
            9,
        ),
        (
            "Llava",
            {
                "tower": "SiglipVisionConfig",
                "text": "Qwen3Config",
                "vision_feature_select_strategy": "full",
                "vision_feature_layer": -1,
            },
            9,
        ),
        ("Llava", {"tower": "SiglipVisionConfig", "text": "GemmaConfig"}, 8),
    ],
)
def test_pictures_of_one_tile(kind, changes, features, tmp_path):
    theirs = torch_model(kind, **changes)
    ours = save(theirs, tmp_path)
    tokens = [IMAGE] * features
    rows = padded_rows([3, tokens, 5, tokens, 7], [8, 9, 10], [4, tokens, 6])
    assert_parity(theirs, ours, rows | {"pixel_values": pixels(3)})
