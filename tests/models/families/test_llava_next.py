"""LLaVA-NeXT and LLaVA-OneVision: processing as transformers', refusals, 1 bit end to end."""

import numpy as np
import pytest
from PIL import Image

import models
from models.families.llava_next.config import LlavaNextConfig
from models.families.llava_next.tiles import picture_rows
from models.families.llava_next_video.config import LlavaNextVideoConfig
from models.families.llava_onevision.config import LlavaOnevisionConfig
from models.families.registry import family_of
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor

SIZE, IMAGE, VIDEO = 12, len(WORDS), len(WORDS) + 1
PINPOINTS = [[12, 24], [24, 12], [24, 24], [36, 12]]
SIDE = 3


def config_json(model_type, **changes):
    vision = {
        "model_type": "siglip_vision_model" if "onevision" in model_type else "clip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 4,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return {
        "model_type": model_type,
        "image_token_index": IMAGE,
        "image_grid_pinpoints": PINPOINTS,
        "vision_config": vision,
        "text_config": text,
        **changes,
    }


def next_model(folder):
    write_processor(
        folder,
        special=["<image>", "<video>"],
        image_processor={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": SIZE},
            "crop_size": {"height": SIZE, "width": SIZE},
            "image_grid_pinpoints": PINPOINTS,
        },
    )
    return write_random_checkpoint(folder, config_json("llava_next"))


def onevision_model(folder):
    write_processor(
        folder,
        special=["<image>", "<video>"],
        image_processor={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "image_grid_pinpoints": PINPOINTS,
        },
    )
    config = config_json(
        "llava_onevision", video_token_index=VIDEO, vision_aspect_ratio="anyres_max_2"
    )
    return write_random_checkpoint(folder, config)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return next_model(tmp_path_factory.mktemp("llava_next"))


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    return onevision_model(tmp_path_factory.mktemp("llava_onevision"))


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("sizes", [[(30, 11), (7, 40)], [(20, 20)], [(5, 90), (64, 37), (1, 300)]])
def test_llava_next_prepares_as_the_real_processor(model, sizes):
    from transformers import LlavaNextProcessor

    real = real_processor(
        model.source,
        LlavaNextProcessor,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    given, text = pictures(*sizes), "what <image> is " * len(sizes)
    expected = real(images=given, text=[text], return_tensors="np")
    got = models.prepare(model, prompts=text, images=given)
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.pixel_values, again.pixel_values)
    np.testing.assert_array_equal(got.vision_layout.rows, again.vision_layout.rows)


@pytest.mark.parametrize("sizes", [[(24, 23)], [(30, 11), (7, 40)]])
def test_onevision_prepares_as_the_real_processor(onevision, sizes):
    from transformers import LlavaOnevisionProcessor

    real = real_processor(
        onevision.source,
        LlavaOnevisionProcessor,
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    given, text = pictures(*sizes), "what <image> is " * len(sizes)
    expected = real(images=[given], text=[text], return_tensors="np")
    got = models.prepare(onevision, prompts=text, images=given)
    again = models.prepare(onevision, **expected)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.pixel_values, again.pixel_values)
    np.testing.assert_array_equal(got.vision_layout.rows, again.vision_layout.rows)


def test_sizes_of_a_few_buckets_are_padded_to(model):
    counts = {
        models.prepare(
            model, prompts="<image> " * n, images=pictures(*[(20, 20)] * n)
        ).pixel_values.shape[0]
        for n in (1, 2, 3, 4)
    }
    assert counts == {5, 10, 16, 20}


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"vision_feature_select_strategy": "full"}, NotImplementedError, "select_strategy='full'"),
        ({"image_grid_pinpoints": [[12, 20]]}, ValueError, r"image_grid_pinpoints\[0\]"),
        ({"image_grid_pinpoints": [[12]]}, ValueError, r"image_grid_pinpoints\[0\]"),
        ({"image_grid_pinpoints": []}, ValueError, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[12000, 12000]]}, ValueError, "pixels together"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, error, named):
    with pytest.raises(error, match=named):
        LlavaNextConfig.from_hf(config_json("llava_next", **changes))


@pytest.mark.parametrize("ratio", ["anyres", "square", "anyres_max_", "anyres_max_0"])
def test_other_aspect_ratios_are_refused(ratio):
    config = config_json("llava_onevision", vision_aspect_ratio=ratio)
    with pytest.raises(NotImplementedError, match="vision_aspect_ratio="):
        LlavaOnevisionConfig.from_hf(config)


TILES = np.zeros((1, 5, 3, SIZE, SIZE), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixel_values": TILES}, "image_sizes: expected it beside pixel_values"),
        ({"image_sizes": [[20, 20]]}, "pixel_values: expected it beside image_sizes"),
        ({"pixel_values": TILES[:, :4], "image_sizes": [[20, 20]]}, "at most 5 each"),
        ({"pixel_values": TILES[0], "image_sizes": [[20, 20], [9, 9]]}, "at most 5 each"),
        ({"pixel_values": TILES, "image_sizes": [[20, 0]]}, "heights and widths of 1 or more"),
        ({"pixel_values": TILES, "image_sizes": [[20.0, 9.0]]}, "got float64"),
        ({"pixel_values": TILES, "image_sizes": [[20, 20]]}, "more images than tokens"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(model, arrays, message):
    with pytest.raises(ValueError, match=message):
        models.prepare(model, input_ids=[[1, IMAGE, 2]], **arrays)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"batch_num_images": [2], "pixel_values": TILES, "image_sizes": [[9, 9]]}, "batch_num"),
        ({"pixel_values_videos": TILES[0]}, r"pixel_values_videos: expected floats \[clips"),
        ({"pixel_values_videos": TILES}, "more videos than tokens"),
    ],
)
def test_onevision_arrays_that_do_not_fit_are_refused(onevision, arrays, message):
    with pytest.raises(ValueError, match=message):
        models.prepare(onevision, input_ids=[[1, VIDEO, 2]], **arrays)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"spatial_pool_mode": "conv"}, NotImplementedError, "spatial_pool_mode='conv'"),
        ({"spatial_pool_stride": 4}, ValueError, "spatial_pool_stride: expected at most the 3"),
    ],
)
def test_poolings_of_clips_that_cannot_be_are_refused_by_name(changes, error, named):
    with pytest.raises(error, match=named):
        LlavaNextVideoConfig.from_hf(config_json("llava_next_video", **changes))


def test_clips_and_pictures_lie_in_the_order_of_their_tokens():
    config = LlavaNextVideoConfig.from_hf(
        config_json("llava_next_video", video_token_index=VIDEO, spatial_pool_stride=2)
    )
    picture = [IMAGE] * len(picture_rows(config, 20, 20, 0)[0])
    ids = np.array([[VIDEO, VIDEO, *picture]])
    clip = np.ones((1, 2, 3, SIZE, SIZE), np.float32)
    arrays = {"pixel_values": TILES, "image_sizes": np.array([[20, 20]])}
    prepare = family_of("llava_next_video").visual_inputs
    got = prepare(config, ids, ids > 0, arrays | {"pixel_values_videos": clip})
    # Five tiles of 3 x 3 features, then two frames, of each of which one square of 2 x 2 is left.
    assert np.asarray(got.layout)[:3].tolist() == [
        [45, 46, 48, 49],
        [54, 55, 57, 58],
        [0, 0, 0, 0],
    ]
    with pytest.raises(ValueError, match="more videos than tokens"):
        prepare(config, ids[:, 1:], ids[:, 1:] > 0, arrays | {"pixel_values_videos": clip})


def test_pinpoints_of_the_processor_have_to_be_the_models(tmp_path):
    write_processor(
        tmp_path,
        special=["<image>"],
        image_processor={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": SIZE},
            "crop_size": {"height": SIZE, "width": SIZE},
            "image_grid_pinpoints": [[12, 24]],
        },
    )
    model = write_random_checkpoint(tmp_path, config_json("llava_next"))
    with pytest.raises(ValueError, match="both must be the same"):
        models.chat_prompt(model, "what ?")
