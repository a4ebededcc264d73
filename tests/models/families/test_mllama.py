"""Mllama: pictures lie in cross-attention layers alone; processing, generation, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import models
import vkq_jax
from models.families.mllama.config import MllamaConfig
from models.generation.recoding import recode
from tests.support.calibrated import check_calibration
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint

# Widens scores instead of narrowing them: the guard has nothing to do.
UNGUARDED = dataclasses.replace(
    vkq_jax.presets["calibquant-1bit"], calibration=vkq_jax.ScoreCalibration(tau1=1.0, tau2=-1.0)
)
SIZE, TILES, CROSS = 14, 4, (1, 3)
IMAGE = len(WORDS)
TILE_FEATURES = 2 * 2 + 1
TEMPLATE = (
    "<s>{% for m in messages %}USER: {% for c in m.content %}"
    "{% if c.type == 'image' %}<|image|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    " {% endfor %}ASSISTANT:"
)


def config_json(*, vision=None, text=None, **changes):
    return {
        "model_type": "mllama",
        "image_token_index": IMAGE,
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 7,
            "vision_output_dim": 16,
            "intermediate_layers_indices": [0],
            **(vision or {}),
        },
        "text_config": {
            "model_type": "mllama_text_model",
            "vocab_size": len(WORDS),
            "eos_token_id": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "cross_attention_layers": list(CROSS),
            **(text or {}),
        },
        **changes,
    }


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


WIDE, SQUARE = picture(10, 26), picture(14, 14, seed=1)  # two tiles, and one


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllama")
    write_processor(
        folder,
        special=("<|image|>",),
        image_processor={
            "image_processor_type": "MllamaImageProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "max_image_tiles": TILES,
            "do_pad": True,
        },
        template=TEMPLATE,
    )
    return write_random_checkpoint(folder, config_json())


def prompts(model, *pictures):
    return [models.chat_prompt(model, "what is this ?", num_images=n) for n in pictures]


@pytest.fixture(scope="module")
def inputs(model):
    return models.prepare(model, prompts=prompts(model, 2, 0), images=[[WIDE, SQUARE], None])


def test_ids_tiles_and_mask_are_those_of_the_real_processor(model):
    from transformers import AutoTokenizer, MllamaProcessor
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    tokenizer = AutoTokenizer.from_pretrained(model.source)
    real = MllamaProcessor(
        AutoImageProcessor.from_pretrained(model.source, backend="pil"), tokenizer
    )
    pictures = [WIDE, SQUARE]
    for text, options in (
        ("<|image|> what <|image|> is this ?", {}),
        (prompts(model, 2)[0], {"add_special_tokens": False}),
    ):
        expected = real(images=[pictures], text=[text], return_tensors="np", **options)
        got = models.prepare(model, prompts=text, images=pictures)
        np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
        again = models.prepare(model, **expected)
        np.testing.assert_array_equal(again.pixel_values, got.pixel_values)
        np.testing.assert_array_equal(again.places.kept, got.places.kept)
    assert got.pixel_values.shape == (2, TILES, 3, SIZE, SIZE)
    assert got.vision_layout.is_tile.sum(-1).tolist() == [2, 1]


def test_a_row_is_what_it_is_alone(model, inputs):
    logits = models.forward(model, inputs)
    for row, images in enumerate(([WIDE, SQUARE], None)):
        alone = models.prepare(model, prompts=prompts(model, 2, 0)[row], images=images)
        expected = models.forward(model, alone)[0]
        got = logits[row][inputs.mask[row]]
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.fixture(scope="module")
def answer(model, inputs):
    return models.generate(
        model, inputs, quant="signs-1bit", quantize_at="image", max_new_tokens=3, stop_tokens=()
    )


def test_pictures_are_coded_once_in_the_cross_attention_layers(model, answer):
    cache = answer.cache
    assert cache.cross_layers == CROSS
    assert cache.parts[0].visual == ()
    assert [n.tolist() for n in cache.visual_lengths] == [[3 * TILE_FEATURES, 0]]
    assert cache.num_tokens.tolist() == cache.text_length.tolist()
    size = vkq_jax.cache_nbytes(cache)
    assert 0 < size.visual < size.visual_full_precision
    assert len(models.decode(model, answer.tokens)) == 2


@pytest.mark.ci  # compiles five programs
def test_questions_share_the_pictures_of_one_prompt_in_any_turn(model):
    prompt, options = prompts(model, 1)[0], {"max_new_tokens": 2, "stop_tokens": ()}
    one = models.prepare(model, images=WIDE, prompts=prompt)
    cache = models.prefill_image(model, one, quant="vkq-1bit")
    asked = models.prepare_questions(model, images=WIDE, prompts=[prompt, prompt + " red"])
    shared = models.generate(model, asked, cache=cache, **options)
    assert shared.cache.visual_lengths[0].tolist() == [2 * TILE_FEATURES]
    alone = models.generate(model, one, quant="vkq-1bit", quantize_at="image", **options)
    np.testing.assert_array_equal(shared.tokens[0], alone.tokens[0])
    later = models.prepare(model, prompts="<|image|> red ?", images=SQUARE, later_turn=True)
    again = models.generate(model, later, cache=alone.cache, **options)
    assert [n.tolist() for n in again.cache.visual_lengths] == [
        [2 * TILE_FEATURES],
        [TILE_FEATURES],
    ]


@pytest.mark.ci  # compiles prefill, decoding and calibration
def test_cross_attention_layers_are_calibrated(model):
    both = models.prepare(model, prompts=prompts(model, 2, 1), images=[[WIDE, SQUARE], [SQUARE]])
    codes = check_calibration(model, both, lambda cache: [part.tables for part in cache.parts[1:]])
    mixed = vkq_jax.per_layer("vkq-1bit", {1: "none"})  # of the layers 1 and 3
    cache = models.generate(model, both, quant=mixed, tables=codes, max_new_tokens=1).cache
    assert [part.tables is None for part in cache.parts] == [True, False, True]
    got, whole = cache.parts[1].tables, codes.presets[0].tables
    np.testing.assert_array_equal(got.key.codebook, whole.key.codebook[1:])


def test_scores_of_cross_attention_layers_are_calibrated(model, inputs):
    own = models.calibrate_scores(model, inputs, quant=UNGUARDED, max_new_tokens=1)
    changed = (np.asarray(own.slope) != 1).any(1)
    np.testing.assert_array_equal(changed, [number in CROSS for number in range(4)])


@pytest.mark.ci  # compiles a decoder three times
def test_cross_attention_layers_have_settings_of_their_own(model, inputs):
    """As when a cache in full precision is coded; layers of text lie in the range, too."""
    settings = vkq_jax.per_layer("none", {range(3): "signs-1bit"})
    options = {"max_new_tokens": 1, "stop_tokens": ()}
    mixed = models.generate(model, inputs, quant=settings, **options).cache
    assert [cells.layers for cells in mixed.cells] == [(0, 2), (1,), (3,)]
    whole = models.generate(model, inputs, quant="none", **options).cache
    again = recode(model, whole, mixed.quant)
    assert again.quant == mixed.quant == settings.settle(4, 1)
    for got, expected in zip(again.parts, mixed.parts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, got.visual, expected.visual)
    later = models.prepare(model, prompts=["red ?", "red"], images=None, later_turn=True)
    models.generate(model, later, cache=mixed, **options)


def test_a_cache_of_another_kind_is_refused(model, inputs):
    plain = vkq_jax.empty_cache(
        num_layers=4, batch=2, num_kv_heads=1, head_dim=8, cache_length=32, dtype=jnp.float32
    )
    with pytest.raises(ValueError, match="cross-attention layers none, the model in 1, 3"):
        models.generate(model, inputs, max_new_tokens=1, cache=plain)


def changed(expected, **arrays):
    return {name: value for name, value in (expected | arrays).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"aspect_ratio_ids": None}, "aspect_ratio_ids: the processor gives"),
        (lambda a: {"aspect_ratio_ids": a["aspect_ratio_ids"] + 8}, "from 1 to 8"),
        (lambda a: {"aspect_ratio_ids": a["aspect_ratio_ids"] * 0}, r"expected \[1\] pictures"),
        (lambda a: {"aspect_ratio_mask": a["aspect_ratio_mask"] * 2}, "expected zeros and ones"),
        (lambda a: {"aspect_ratio_mask": a["aspect_ratio_mask"] * 0}, "expected 1 for the first"),
        (lambda a: {"pixel_values": a["pixel_values"][:, :, :2]}, r"floats \[images, 4, 3, 14, 14"),
        (lambda a: {"pixel_values": a["pixel_values"] * np.nan}, "finite"),
        (
            lambda a: {"cross_attention_mask": np.ones_like(a["cross_attention_mask"])},
            "cross_attention_mask: expected that of the real processor",
        ),
        (lambda a: {"input_ids": np.full_like(a["input_ids"], 6)}, r"expected \[0\] pictures"),
    ],
)
def test_arrays_that_do_not_fit_are_named(model, change, message):
    from models.prompts.processor import processor_of

    output = processor_of(model).image_processor([[WIDE]], return_tensors="np")
    ids = np.array([[1, 4, IMAGE, 6, 7]])
    mask = np.zeros((1, 5, 1, TILES))
    mask[:, 2:, 0] = output["aspect_ratio_mask"]
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    arrays = {name: np.asarray(output[name]) for name in names}
    arrays |= {"input_ids": ids, "cross_attention_mask": mask}
    models.prepare(model, **arrays)
    with pytest.raises(ValueError, match=message):
        models.prepare(model, **changed(arrays, **change(arrays)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text": {"cross_attention_layers": [4]}}, ValueError, r"layers in \[0, 4\), got \[4\]"),
        ({"text": {"cross_attention_layers": [0, 1, 2, 3]}}, NotImplementedError, "has all layers"),
        ({"text": {"model_type": "llama"}}, NotImplementedError, "text_config.model_type='llama'"),
        ({"vision": {"vision_output_dim": 24}}, ValueError, "vision_output_dim: expected 16"),
        ({"vision": {"attention_heads": 3}}, ValueError, "a multiple of attention_heads=3"),
        ({"vision": {"intermediate_layers_indices": [2]}}, ValueError, r"layers in \[-2, 2\)"),
        ({"vision": {"patch_size": 15}}, ValueError, "patch_size: expected at most image_size=14"),
        ({"image_token_index": 99}, ValueError, "image_token_index: expected one of the 19 rows"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        MllamaConfig.from_hf(config_json(**changes))


def test_processor_settings_have_to_fit_the_tower(model, tmp_path):
    import json
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(model.source, folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_image_tiles": 2}))
    with pytest.raises(ValueError, match="max_image_tiles: expected 4, as in the vision tower"):
        models.prepare(models.load(folder), prompts="what", images=None)
