"""Gemma 4 12B: squares of pixels, processing, refusals; transformers' model (parity)."""

import numpy as np
import pytest

import models
from models.families.gemma4.unified import merged
from models.families.gemma4.unified_config import Gemma4UnifiedConfig
from tests.models.families.test_gemma4 import (
    BEGIN_ID,
    END_ID,
    IMAGE,
    PATCH,
    POOL,
    SOFT,
    SPECIAL,
    VIDEO,
)
from tests.models.families.test_gemma4 import config_json as config_with_tower
from tests.support.hf_parity import assert_parity, save, since
from tests.support.pictures import random_picture
from tests.support.processor_files import write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.rows import padded_rows

SIDE = POOL * PATCH


def config_json(*, text=None, vision=None, **changes):
    tower = {"patch_size": PATCH, "pooling_kernel_size": POOL, "mm_embed_dim": 12}
    own = {"output_proj_dims": 12, "mm_posemb_size": 80}
    settings = config_with_tower()["text_config"]
    for name in ("hidden_size_per_layer_input", "vocab_size_per_layer_input"):
        del settings[name]
    settings |= {"num_kv_shared_layers": 0, "sliding_window": 6}
    return config_with_tower() | {
        "model_type": "gemma4_unified",
        "vision_config": tower | own | (vision or {}),
        "text_config": settings | (text or {}),
        **changes,
    }


def batch(*rows, token=IMAGE):
    """As the processor gives it: rows and columns of squares of each row's pictures, or frames."""
    rng = np.random.default_rng(0)
    tokens, pixels, places = [], [], []
    for number, pictures in enumerate(rows):
        parts = [rng.integers(4, 10, 3 + number)]
        for height, width in pictures:
            count = height * width
            parts += [[BEGIN_ID, *[token] * count, END_ID], rng.integers(4, 10, 2)]
            square, place = np.zeros((8, 3 * SIDE**2), np.float32), np.full((8, 2), -1)
            square[:count] = rng.uniform(size=(count, 3 * SIDE**2))
            place[:count] = np.indices((height, width))[::-1].reshape(2, -1).T
            pixels.append(square)
            places.append(place)
        tokens.append(np.concatenate(parts).tolist())
    found = padded_rows(*tokens)
    clips = token == VIDEO
    found["mm_token_type_ids"] = (found["input_ids"] == token) * (1 + clips)
    names = ("pixel_values_videos", "video_position_ids") if clips else _OF_PICTURES
    found |= dict(zip(names, map(np.stack, (pixels, places)), strict=True))
    return found | (
        {"num_frames_per_video": np.array([len(r) for r in rows if r])} if clips else {}
    )


_OF_PICTURES = ("pixel_values", "image_position_ids")


@pytest.mark.parity
@pytest.mark.parametrize("original", [True, False], ids=["names of the Hub", "of modules"])
def test_transformers_model_gives_the_same_logits_and_tokens(original, tmp_path):
    from tests.support.draws.drawn import torch_model

    theirs = torch_model(config_json(), 0)
    ours = save(theirs, tmp_path, save_original_format=original)
    assert_parity(theirs, ours, batch([(2, 3), (1, 1)], [], [(4, 2)]), new_tokens=5)


@pytest.mark.parity
@since("5.24", "frames of all clips lie on one axis")
def test_clips_are_read_as_transformers_does(tmp_path):
    from tests.support.draws.drawn import torch_model

    changes = {"use_bidirectional_attention": None, "attention_k_eq_v": False}
    theirs = torch_model(config_json(text=changes | {"final_logit_softcapping": 8.0}), 1)
    ours = save(theirs, tmp_path)
    assert_parity(theirs, ours, batch([(2, 3)] * 2, [], [(1, 2)], token=VIDEO), new_tokens=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma4_unified")
    sizes = {"patch_size": PATCH, "pooling_kernel_size": POOL, "max_soft_tokens": 70}
    kind = {"image_processor_type": "Gemma4UnifiedImageProcessor"}
    write_processor(folder, special=SPECIAL, image_processor=kind | sizes)
    return write_random_checkpoint(folder, config_json(vision={"mm_posemb_size": 80}))


def test_pictures_become_squares_between_two_tokens(model):
    text = f"what {SOFT} is this {SOFT} ?"
    got = models.prepare(model, prompts=text, images=[random_picture(20, 45), random_picture(9, 9)])
    ids = got.input_ids[0].tolist()
    # 70 squares of 8 pixels hold 5 rows of 12, and 8 of 8.
    assert ids.count(IMAGE) == 5 * 12 + 8 * 8
    assert [ids.count(token) for token in (BEGIN_ID, END_ID)] == [2, 2]
    assert got.vision_layout.sizes[:2].tolist() == [[5, 12], [8, 8]]
    assert got.pixel_values.shape[2] == 3 * SIDE**2


def test_frames_of_clips_become_squares(model):
    frames = [np.asarray(random_picture(16, 24, seed=seed)) for seed in (0, 1)]
    clip = models.Clip(np.stack(frames), fps=1.0)
    got = models.prepare(model, prompts="what <video> ?", videos=[clip], num_frames=2)
    # 70 squares of 8 pixels hold 6 rows of 10.
    assert (got.input_ids == VIDEO).sum() == 2 * 6 * 10
    assert got.vision_layout.sizes[:2].tolist() == [[6, 10]] * 2


def test_squares_are_those_of_patches_that_are_as_large():
    pixels = np.arange(2 * SIDE * 3 * SIDE * 3).reshape(2 * SIDE, 3 * SIDE, 3)
    cut = pixels.reshape(4, PATCH, 6, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(24, -1)
    patches = np.pad(cut, ((0, 8), (0, 0)))[None]
    grid = np.indices((4, 6))[::-1].reshape(2, -1).T
    places = np.pad(grid, ((0, 8), (0, 0)), constant_values=-1)[None]
    squares, found = merged(patches, places, POOL)
    expected = pixels.reshape(2, SIDE, 3, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(6, -1)
    np.testing.assert_array_equal(squares[0], np.pad(expected, ((0, 2), (0, 0))))
    assert found[0].tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"vision_config": None}, NotImplementedError, "vision_config=null"),
        ({"vision": {"output_proj_dims": 8}}, ValueError, "expected mm_embed_dim=12, got 8"),
        ({"text": {"hidden_size_per_layer_input": 4}}, NotImplementedError, "input=4"),
        ({"text": {"enable_moe_block": True}}, NotImplementedError, "enable_moe_block=True"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, error, named):
    with pytest.raises(error) as raised:
        Gemma4UnifiedConfig.from_hf(config_json(**changes))
    assert named in str(raised.value)
