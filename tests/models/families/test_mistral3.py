"""Mistral Small 3, and LLaVA with a Pixtral tower: processing, refusals, transformers (parity)."""

import dataclasses
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import models
from models.families.mistral3.config import Mistral3Config
from models.families.registry import family_of
from models.loading import save_weights
from models.vision.pixtral_weights import pixtral_names
from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor
from tests.support.rows import padded_rows

PATCH = 4
IMAGE, BREAK, END = (len(WORDS) + i for i in range(3))
VISION = {
    "model_type": "pixtral",
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": PATCH,
}
TEXT = {
    "model_type": "mistral",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": 256,
}
MINISTRAL3 = TEXT | {
    "model_type": "ministral3",
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "llama_4_scaling_beta": 0.7,
    },
}
LLAVA = {
    "model_type": "llava",
    "spatial_merge_size": 1,
    "vision_feature_select_strategy": "full",
    "vision_feature_layer": -1,
}


def config_json(**changes):
    return {
        "model_type": "mistral3",
        "image_token_index": IMAGE,
        "tie_word_embeddings": False,
        "vision_config": VISION,
        "text_config": TEXT,
        **changes,
    }


def write_tiny_processor(folder, merge=2, **image_settings):
    write_processor(
        folder,
        special=["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        image_processor={
            "image_processor_type": "PixtralImageProcessor",
            "processor_class": "PixtralProcessor",
            "patch_size": {"height": PATCH, "width": PATCH},
            "size": {"longest_edge": 24},
            **image_settings,
        },
        processor={
            "processor_class": "PixtralProcessor",
            "patch_size": PATCH,
            "spatial_merge_size": merge,
            "image_token": "[IMG]",
        },
    )


def image_tokens(height, width, merge=2):
    rows, columns = height // (PATCH * merge), width // (PATCH * merge)
    return [*(([IMAGE] * columns + [BREAK]) * rows)[:-1], END]


def arrays(*sizes):
    """Pictures of these sizes as transformers' processor gives them."""
    height, width = np.max(sizes, axis=0)
    pixels = np.zeros((len(sizes), 3, height, width), np.float32)
    rng = np.random.default_rng(1)
    for picture, (rows, columns) in zip(pixels, sizes, strict=True):
        picture[:, :rows, :columns] = rng.normal(size=(3, rows, columns))
    return {"pixel_values": pixels, "image_sizes": np.array(sizes)}


def theirs(**changes):
    import transformers

    kind = changes.get("model_type", "mistral3")
    name = {"mistral3": "Mistral3", "llava": "Llava"}[kind]
    config = getattr(transformers, f"{name}Config")(**config_json(**changes))
    return randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def with_positions(tensors):
    """Padding does not count as positions, which matters where queries grow with them."""
    return tensors | {"position_ids": (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


CASES = {
    "Mistral, merged blocks": {},
    "another layer, a bias, RoPE of the tower": {
        "vision_feature_layer": [-2],
        "multimodal_projector_bias": True,
        "projector_hidden_act": "relu",
        "spatial_merge_size": 3,
        "vision_config": VISION
        | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
            "hidden_act": "silu",
            "head_dim": 6,
        },
        "text_config": TEXT | {"sliding_window": 7},
        "tie_word_embeddings": True,
    },
    "Ministral 3, whose queries grow": {"text_config": MINISTRAL3},
    "Pixtral": LLAVA,
}


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_transformers_model_gives_the_same_logits_and_tokens(name, tmp_path):
    changes = CASES[name]
    hf = theirs(**changes)
    ours = save(hf, tmp_path, save_original_format="Pixtral" not in name)
    merge = changes.get("spatial_merge_size", 2)
    sizes = [(12 * merge, 4 * merge), (4 * merge, 8 * merge), (8 * merge, 8 * merge)]
    first, second, third = (image_tokens(*size, merge) for size in sizes)
    rows = padded_rows([3, first, 5, second, 7], [8, 9, 10], [4, third, 6])
    extra = with_positions if "grow" in name else lambda tensors: tensors
    assert_parity(hf, ours, rows | arrays(*sizes), extra=extra)


@pytest.mark.parity
def test_both_layouts_of_names_load_the_same(tmp_path):
    hf = theirs()
    first, second = (
        save(hf, tmp_path / str(original), save_original_format=original)
        for original in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    save_weights(first, tmp_path / "True")
    again = type(hf).from_pretrained(tmp_path / "True")
    for name, tensor in hf.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], tensor)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistral3")
    write_tiny_processor(folder)
    return write_random_checkpoint(folder, config_json(text_config=MINISTRAL3))


@pytest.fixture
def real_pixtral(monkeypatch):
    """transformers' class, which imports torchvision for a function that is not called."""
    from transformers.models.pixtral import image_processing_pil_pixtral as on_pil

    monkeypatch.setitem(sys.modules, "transformers.models.pixtral.image_processing_pixtral", on_pil)
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    return partial(real_processor, processor_class=PixtralProcessor, patch_size=PATCH)


def assert_prepares_as(real, model):
    pictures = [random_picture(30, 21), random_picture(9, 40, seed=1), random_picture(8, 8, seed=2)]
    prompts = ["what [IMG] is this [IMG] ?", "red ?", "[IMG] red"]
    groups = [pictures[:2], [], pictures[2:]]
    got = models.prepare(model, prompts=prompts, images=groups)
    for row, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        expected = real(text=[prompt], images=[group] if group else None, return_tensors="np")
        ids = got.input_ids[row][got.mask[row]]
        np.testing.assert_array_equal(ids, np.asarray(expected["input_ids"])[0])
    expected = real(
        text=prompts[::2],
        images=groups[::2],
        padding=True,
        padding_side="left",
        return_tensors="np",
    )
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(got.pixel_values, again.pixel_values)
    jax.tree.map(np.testing.assert_array_equal, got.vision_layout, again.vision_layout)


def test_ids_and_pixels_are_those_of_the_real_processor(model, real_pixtral):
    assert_prepares_as(real_pixtral(model.source, spatial_merge_size=2), model)


def test_pictures_of_different_sizes(model):
    prompts = [models.chat_prompt(model, "what is this ?", num_images=n) for n in (2, 0)]
    groups = [[random_picture(30, 21), random_picture(9, 40)], None]
    inputs = models.prepare(model, prompts=prompts, images=groups)
    # 24 x 16 and 8 x 24 pixels become 3 x 2 and 1 x 3 blocks; tokens behind rows are text.
    assert inputs.visual_mask.sum(-1).tolist() == [6 + 3, 0]
    assert (np.asarray(inputs.input_ids) == BREAK).sum() == 2


def test_a_pixtral_of_llava_is_a_family_of_its_own(tmp_path, real_pixtral):
    write_tiny_processor(tmp_path, 1)
    pixtral = write_random_checkpoint(tmp_path, config_json(**LLAVA))
    assert pixtral.config.vision.merge == 1
    assert_prepares_as(real_pixtral(tmp_path, spatial_merge_size=1), pixtral)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"vision_feature_layer": [-1, -2]}, NotImplementedError, "vision_feature_layer="),
        ({"vision_feature_layer": 0}, NotImplementedError, "vision_feature_layer=0"),
        ({"vision_feature_layer": 3}, ValueError, "vision_feature_layer=3"),
        (LLAVA | {"vision_feature_select_strategy": "default"}, NotImplementedError, "'default'"),
        ({"text_config": {"model_type": "gpt2"}}, NotImplementedError, "model_type='gpt2'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, error, named):
    read = family_of(changes.get("model_type", "mistral3")).read_config
    with pytest.raises(error, match=named):
        read(config_json(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model_type": "siglip_vision_model"}, NotImplementedError, "vision_config.model_type="),
        ({"num_channels": 1}, NotImplementedError, "vision_config.num_channels=1"),
        ({"rope_parameters": {"rope_type": "yarn"}}, NotImplementedError, "rope_type='yarn'"),
        ({"rope_parameters": {"factor": 2}}, NotImplementedError, "rope_parameters has factor"),
        ({"patch_size": [4, 5]}, NotImplementedError, "vision_config.patch_size"),
        ({"head_dim": 4}, ValueError, "vision_config.head_dim: expected .*=6, got 4"),
        ({"num_attention_heads": 5}, ValueError, "vision_config.hidden_size"),
    ],
)
def test_settings_of_the_tower_that_cannot_be_are_refused_by_name(changes, error, named):
    with pytest.raises(error, match=named):
        Mistral3Config.from_hf(config_json(vision_config=VISION | changes))


def test_rope_of_the_tower_reads_the_same_in_files_of_both_generations():
    old = {"rope_theta": 50.0}
    new = {"rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}}
    first, second = (
        Mistral3Config.from_hf(config_json(vision_config=VISION | each)) for each in (old, new)
    )
    assert first == second
    assert first.vision.rope_theta == 50


@pytest.mark.parametrize(
    ("rope", "error", "named"),
    [
        ({"rope_type": "default"}, ValueError, "llama_4_scaling_beta is missing"),
        (MINISTRAL3["rope_parameters"] | {"x": 1}, NotImplementedError, "rope_parameters has x"),
    ],
)
def test_growths_of_queries_that_cannot_be_are_refused_by_name(rope, error, named):
    with pytest.raises(error, match=named):
        Mistral3Config.from_hf(config_json(text_config=MINISTRAL3 | {"rope_parameters": rope}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_sizes": None}, "image_sizes: expected it beside pixel_values"),
        ({"image_sizes": [[16, 12]]}, "image_sizes: expected multiples of the 8 pixels"),
        ({"image_sizes": [[16, 3]]}, "image_sizes: expected multiples of the 8 pixels"),
        ({"image_sizes": [[16, 24]]}, "pixel_values: expected 1 pictures of at least 16 x 24"),
        ({"image_sizes": [[16, 16], [8, 8]]}, "pixel_values: expected 2 pictures"),
        (arrays((16, 24)), "more images than tokens"),
        ({"pixel_values": np.zeros((1, 3, 16), np.float32)}, "pixel_values: expected floats"),
        ({"pixel_values": np.full((1, 3, 16, 16), np.nan, np.float32)}, "finite float32 values"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(model, changes, message):
    given = arrays((16, 16)) | changes
    with pytest.raises(ValueError, match=message):
        models.prepare(model, input_ids=[[1, *image_tokens(16, 16), 2]], **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"longest_edge": 10**6}}, "preprocessor_config.json: size: expected longest"),
        ({"size": {"shortest_edge": 24}}, "preprocessor_config.json: size: expected longest"),
        ({"do_center_crop": True, "crop_size": {"height": 0, "width": 8}}, "crop_size: expected"),
        ({}, "1 x 40 has no pixel left across once it fits 24 x 24"),
        (
            {"size": {"height": 39, "width": 8}},
            "1 x 40 has no pixel left across once it fits 8 x 39",
        ),
    ],
)
def test_pictures_and_image_settings_that_cannot_be_are_refused(tmp_path, settings, message, model):
    if settings:
        write_tiny_processor(tmp_path, **settings)
        model = dataclasses.replace(model, source=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        models.prepare(model, prompts="[IMG] red", images=random_picture(40, 1))


def test_a_tokenizer_without_the_tokens_that_end_rows_is_refused(tmp_path, model):
    write_tiny_processor(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("[IMG_END]", "[OTHER]"))
    with pytest.raises(ValueError, match=r"no token \[IMG_END\]"):
        models.chat_prompt(dataclasses.replace(model, source=str(tmp_path)), "what ?")


@pytest.mark.parametrize(("layer", "expected"), [(1, False), (2, True), (3, True), (4, False)])
def test_layers_of_the_tower_behind_the_last_that_is_read_may_be_in_the_files(layer, expected):
    encoder = SimpleNamespace(num_hidden_layers=4, hidden_size=8, intermediate_size=16)
    names = pixtral_names(SimpleNamespace(encoder=encoder, num_layers=2, patch_size=2))
    assert names.is_unused(f"vision.encoder.layers.{layer}.mlp.up_proj.weight") == expected
    assert not names.is_unused("text.embed_tokens.weight")
