import dataclasses
import json
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.inputs.clip_processing import ClipProcessing
from models.inputs.processing import Processing
from models.prompts.processor import Processor, processor_of
from tests.models.hf_files import random_weights, write_checkpoint, write_processor

QUESTION = "USER: <image> what is this ? ASSISTANT:"
PICTURE = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
IMAGES, WORDS = "preprocessor_config.json", "tokenizer_config.json"
CODE = {"AutoTokenizer": ["code.Foo", None], "AutoImageProcessor": "code.Foo"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_processor(tmp_path_factory.mktemp("processor"))
    return models.load(write_checkpoint(folder, random_weights()), dtype=jnp.float32)


def test_decode_stops_at_each_length(model):
    tokens = np.array([[4, 5, 6], [7, 8, 2]])
    assert models.decode(model, tokens) == ["USER: ASSISTANT: what", "is this"]
    assert models.decode(model, tokens, [1, 2]) == ["USER:", "is this"]
    assert models.decode(model, tokens[0]) == ["USER: ASSISTANT: what"]
    with pytest.raises(ValueError, match="expected integers"):
        models.decode(model, tokens * 1.0)
    answer = models.Generation(*[jnp.asarray(tokens)] * 2, cache=None, finite=jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"got a Generation: .*generation\.tokens"):
        models.decode(model, answer)
    for lengths, message in (
        ([1], r"lengths: expected shape \(2,\)"),
        ([1, 4], r"lengths: expected integers in \[0, 3\]"),
        ([-1, 1], r"lengths: expected integers in \[0, 3\]"),
        ([1.0, 1.5], "lengths: expected integers"),
    ):
        with pytest.raises(ValueError, match=message):
            models.decode(model, tokens, lengths)
    for token in (-1, 20, 2**40):
        with pytest.raises(ValueError, match=rf"tokens: expected ids in \[0, 20\), got {token}"):
            models.decode(model, [[4, token]])


def test_files_that_change_are_read_again(tmp_path):
    """A template that was mended is the one that the next prompt is written with."""
    write_processor(tmp_path)
    model = models.load(write_checkpoint(tmp_path, random_weights()))
    assert processor_of(model) is processor_of(model)
    file = tmp_path / "chat_template.jinja"
    for word in ("red", "blue"):
        file.write_text(f"{word} {{{{ messages[0]['content'] }}}}")
        assert models.chat_prompt(model, "what?").startswith(word)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert models.chat_prompt(model, "what?").startswith("blue")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        models.prepare(model, images=PICTURE, prompts=QUESTION)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["tokenizer.json"], "tokenizer.json or tokenizer.model"),
        ([IMAGES, "processor_config.json"], "preprocessor_config.json or"),
    ],
)
def test_missing_processor_files_are_named(tmp_path, missing, message):
    write_processor(tmp_path)
    model = models.load(write_checkpoint(tmp_path, random_weights()))
    for name in missing:
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        models.prepare(model, images=PICTURE, prompts=QUESTION)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (IMAGES, {"image_std": [0.2, 0, 0.2]}, "image_std: expected three"),
        (IMAGES, {"image_std": [0.2, math.nan, 0.2]}, "image_std: expected"),
        (IMAGES, {"image_std": "0.2"}, "image_std: expected three"),
        (
            IMAGES,
            {"image_mean": [0.5]},
            r"image_mean: expected .* got \(0.5,\)",
        ),
        (IMAGES, {"image_mean": {"a": 1}}, "image_mean: expected three"),
        (IMAGES, {"image_mean": 1e6}, "image_mean: expected three numbers from -255 to 255"),
        (IMAGES, {"image_std": 1e30}, "image_std: expected three numbers from 1e-06 to 255"),
        (IMAGES, {"rescale_factor": 1e-300}, "rescale_factor: expected a number from 1e-06"),
        (
            IMAGES,
            {"do_normalize": "no"},
            "do_normalize: expected true or false",
        ),
        (IMAGES, {"do_resize": 1}, "do_resize: expected true or false"),
        (IMAGES, {"rescale_factor": 0}, "rescale_factor: expected a number from"),
        (IMAGES, {"rescale_factor": [1]}, "rescale_factor: expected a number from"),
        (IMAGES, {"resample": 99}, "resample: expected one of"),
        (IMAGES, {"size": {"shortest_edge": -1}}, "size.shortest_edge"),
        (IMAGES, {"size": {"shortest_edge": "28"}}, "size.shortest_edge"),
        (IMAGES, {"size": {"edge": 28}}, "cannot read the processor"),
        (IMAGES, {"size": {"shortest_edge": 10**4}}, "crop long, narrow"),
        (IMAGES, {"size": {"shortest_edge": 10**400}}, "from 1 to 65536"),
        (
            IMAGES,
            {"crop_size": 10**6},
            "crop_size: expected height and width 28",
        ),
        (IMAGES, {"crop_size": {"height": 28}}, "crop_size"),
        (IMAGES, {"do_pad": True, "pad_size": 10**9}, "pad_size: expected"),
        (IMAGES, {"do_center_crop": False}, r"got float32 \(1, 3, 28, 33\)"),
        (IMAGES, {"image_processor_type": "Foo"}, "cannot read the processor"),
        (IMAGES, {"image_processor_type": 3}, "cannot read the processor"),
        (
            IMAGES,
            {"image_processor_type": "Foo", "auto_map": CODE},
            "processor",
        ),
        ("processor_config.json", {"image_token": "<picture>"}, "image token '<picture>' is"),
        ("processor_config.json", {"image_token": 3}, "cannot read the processor"),
        (WORDS, {"padding_side": "up"}, "cannot read the processor"),
        (WORDS, {"bos_token": 3}, "cannot read the processor"),
        (WORDS, {"model_max_length": "long"}, "cannot read the processor"),
        (WORDS, {"tokenizer_class": "Foo", "auto_map": CODE}, "processor"),
        (WORDS, {"added_tokens_decoder": {"x": 1}}, "cannot read the processor"),
        (WORDS, [], "tokenizer_config.json should hold a JSON object, got a list"),
        ("tokenizer.json", {"model": {"type": "WordLevel"}}, "cannot read the processor"),
        ("tokenizer.json", {"added_tokens": 3}, "cannot read the processor"),
    ],
)
def test_settings_of_a_processor_that_cannot_be_are_named(tmp_path, model, file, changes, message):
    write_processor(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    changed = content | changes if isinstance(changes, dict) else changes
    (tmp_path / file).write_text(json.dumps(changed))
    other = dataclasses.replace(model, source=str(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        models.prepare(other, images=PICTURE, prompts=QUESTION)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("depth", [200, 100_000])
@pytest.mark.parametrize("file", [WORDS, IMAGES, "tokenizer.json"])
def test_deeply_nested_files_are_named(tmp_path, model, file, depth):
    write_processor(tmp_path)
    (tmp_path / file).write_text('{"a": ' + "[" * depth + "]" * depth)
    other = dataclasses.replace(model, source=str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot read the processor in|is not valid JSON"):
        models.prepare(other, prompts="what")


def test_broken_processor_files_and_models_without_a_folder(tmp_path):
    write_processor(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    model = models.load(write_checkpoint(tmp_path, random_weights()))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON: Expecting"):
        models.prepare(model, prompts="what")
    homeless = models.Model(model.params, graphdef=model.graphdef, config=model.config)
    with pytest.raises(ValueError, match="not loaded from a folder"):
        models.prepare(homeless, prompts="what")


def test_a_relative_folder_still_has_its_processor_elsewhere(tmp_path, monkeypatch):
    write_processor(tmp_path / "here")
    write_checkpoint(tmp_path / "here", random_weights())
    monkeypatch.chdir(tmp_path)
    model = models.load("here")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert models.prepare(model, prompts="what").input_ids.shape == (1, 2)


@pytest.mark.parametrize(("own", "used"), [(None, 0), ("<image>", 0), ("<pad>", 3), ("new", 13)])
def test_prompts_are_padded_with_a_token_that_the_model_has(tmp_path, model, own, used):
    write_processor(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": own}))
    other = dataclasses.replace(model, source=str(tmp_path))
    inputs = models.prepare(other, prompts=["what is", "what"])
    np.testing.assert_array_equal(inputs.input_ids, [[1, 6, 7], [used, 1, 6]])
    np.testing.assert_array_equal(inputs.mask, [[1, 1, 1], [0, 1, 1]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>", "a <image> b <video>"),
        ("[IMG]", "a [IMG] b <video>"),
        ("<s><image></s>", "a <image> b <video>"),  # processors write the rest around it
    ],
)
def test_marks_of_pictures_become_their_text_unless_that_holds_the_mark(text, expected):
    made = Processor(None, None, Processing(), None, text, text)
    assert made.with_placeholders("a <image> b <video>") == expected
    clips = dataclasses.replace(made, clips=ClipProcessing(), clip_text="(clip)")
    assert clips.with_placeholders("a <image> b <video>") == expected.replace("<video>", "(clip)")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_levels_that_no_setting_rescales_are_floats(dtype):
    """With do_rescale and do_normalize off, transformers leaves pixels as 8-bit levels."""
    made = Processing.run(lambda pictures, **_: {"pixel_values": dtype([[7, 255]])}, [])
    assert made["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(made["pixel_values"], [[7.0, 255.0]])


@pytest.mark.parametrize(
    ("prompt", "pictures", "clips"),
    [
        ("what is this?", False, False),
        ("<image> what?", True, True),
        ("<|begin|><|pad|><|end|> what?", True, True),
        ("<video> what?", False, True),
        ("<|clip|> what?", False, True),
    ],
)
def test_prompts_place_pictures_by_the_models_own_token_too(prompt, pictures, clips):
    made = Processor(
        None,
        None,
        Processing(),
        None,
        placeholder="<|pad|>",
        picture_text="<|begin|><|pad|><|end|>",
        clips=ClipProcessing(),
        clip_placeholder="<|clip|>",
    )
    assert made.places_visuals(prompt, clips=False) == pictures
    assert made.places_visuals(prompt, clips=True) == clips


def test_tokens_beside_a_picture_have_to_exist():
    words: dict[str, int | None] = {"<img>": 3}
    tokenizer = SimpleNamespace(unk_token_id=0, convert_tokens_to_ids=lambda word: words.get(word))
    Processing().check_tokens(tokenizer, "<img>")
    for number in (None, 0):
        words["</img>"] = number
        with pytest.raises(ValueError, match="the tokenizer has no token </img>, which prompts"):
            Processing().check_tokens(tokenizer, "<img>", "</img>")
