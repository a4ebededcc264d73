import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import models
from tests.models.hf_files import random_weights, write_checkpoint, write_processor

QUESTION = "USER: <image> what is this ? ASSISTANT:"
ONES = np.ones((1, 3, 28, 28))
PICTURE = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)


@pytest.fixture(scope="module", params=["current", "legacy"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_processor(folder, legacy=request.param == "legacy")
    return models.load(write_checkpoint(folder, random_weights()), dtype=jnp.float32)


def test_a_prompt_and_its_picture(model):
    inputs = models.prepare(model, images=PICTURE, prompts=QUESTION)
    np.testing.assert_array_equal(inputs.input_ids, [[1, 4, 12, 12, 12, 12, 6, 7, 8, 9, 5]])
    assert inputs.pixel_values.shape == (1, 3, 28, 28)
    assert inputs.prompt_shape == models.PromptShape(visual=4, text=7, prefix=6, suffix=5)
    assert models.decode(model, inputs.input_ids) == ["USER: what is this ? ASSISTANT:"]
    assert models.forward(model, inputs).shape == (1, 11, 20)


def test_a_batch_with_several_pictures_one_and_none(model):
    inputs = models.prepare(
        model,
        prompts=[QUESTION, "<image> <image>", "what is"],
        images=[PICTURE, [PICTURE] * 2, None],
    )
    np.testing.assert_array_equal(inputs.mask.sum(1), [11, 9, 3])
    np.testing.assert_array_equal(inputs.visual_mask.sum(1), [4, 8, 0])
    assert not inputs.mask[2, 0]  # padded in front, as the tokenizer says
    assert inputs.pixel_values.shape == (3, 3, 28, 28)


def test_text_alone(model):
    inputs = models.prepare(model, prompts="what is this ?")
    assert inputs.pixel_values is None
    assert inputs.prompt_shape.visual == 0


def test_pictures_come_as_files_images_and_arrays(model, tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(file)
    forms = [
        str(file),
        file,
        Image.open(file),
        PICTURE,
        [file],
        jnp.asarray(PICTURE),
        PICTURE[None],
    ]
    expected = models.prepare(model, images=PICTURE, prompts=QUESTION).pixel_values
    for form in forms:
        got = models.prepare(model, images=form, prompts=QUESTION)
        np.testing.assert_array_equal(got.pixel_values, expected)
    forms[2].close()
    for images, prompts in (
        ([file, PICTURE], "<image> <image>"),
        (np.stack([PICTURE] * 2), "<image> <image>"),
        (jnp.stack([PICTURE] * 2), [QUESTION] * 2),
    ):
        two = models.prepare(model, images=images, prompts=prompts)
        np.testing.assert_array_equal(two.pixel_values, np.repeat(expected, 2, 0))


def test_a_traced_picture_is_refused(model):
    with pytest.raises(ValueError, match="image: expected arrays with values, got traced ones"):
        jax.jit(lambda x: models.prepare(model, images=x, prompts=QUESTION).pixel_values)(PICTURE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": QUESTION}, "0 images and 1 image token .*without an image; give images="),
        ({"prompts": "what", "images": PICTURE}, "no image token for an image; models.chat_prompt"),
        ({"prompts": QUESTION, "images": [PICTURE] * 2}, r"more images .*\(\.\.\., num_images=2\)"),
        ({"prompts": "<image> <image>", "images": PICTURE}, "more tokens than images"),
        ({"prompts": [QUESTION] * 2, "images": [PICTURE]}, "each of 2 prompts, got 1"),
        ({"prompts": ["what", QUESTION], "images": [None, None]}, "prompt 1 has 0 images"),
        ({"prompts": "  "}, "none of them empty"),
        ({"prompts": []}, "none of them empty"),
        ({"prompts": [3]}, "none of them empty"),
        ({"prompts": ["what", "q\udcc3"]}, r"prompt 1: expected Unicode text, .* at character 1"),
        ({}, "prepare needs prompts"),
        ({"images": PICTURE}, "prepare needs prompts"),
        ({"prompts": QUESTION, "input_ids": [[1]]}, "not both"),
        ({"prompts": QUESTION, "image": PICTURE}, "expected prompts, images, .*, got image$"),
        ({"image": PICTURE, "prompt": QUESTION}, "expected prompts, .*, got image, prompt$"),
        ({"prompts": 3}, "prompts: expected text, or a list of texts, none of them empty, got 3"),
        ({"input_ids": [[1]], "later_turn": True}, "not both"),
        ({"attention_mask": [[1]]}, "expected input_ids, got attention_mask"),
        ({"input_ids": [[1], [1, 2]]}, "input_ids: cannot be read as an array"),
        ({"input_ids": [[1]], "image_sizes": [[2, 2]]}, "got also image_sizes"),
        ({"input_ids": [[1]], "pixel_values": 3.0}, r"expected floats .* got float64 \(\)"),
        ({"input_ids": [[12]], "attention_mask": [1], "pixel_values": ONES}, "attention_mask"),
        ({"input_ids": [[12]], "pixel_values": ONES * np.nan}, "expected finite"),
        ({"input_ids": [[12]], "pixel_values": ONES * 1e300}, "expected finite"),
        ({"prompts": QUESTION, "images": PICTURE / 255}, "expected uint8 .*got float64"),
        ({"prompts": QUESTION, "images": PICTURE[:, :, :2]}, r"got uint8 \(50, 60, 2\)"),
        (
            {"prompts": QUESTION, "images": [3]},
            "or an array of NumPy or JAX, got 3",
        ),
    ],
)
def test_bad_prompts_and_pictures_are_one_clear_error(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        models.prepare(model, **arguments)


def test_unreadable_files_are_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist$"):
        models.prepare(model, images=tmp_path / "nowhere.png", prompts=QUESTION)
    url = "https://nowhere.org/a.png"
    for given in (url, Path(url), "data:image/png;base64,iVBORw0KGgo=", (tmp_path / "a").as_uri()):
        with pytest.raises(FileNotFoundError, match="nothing is downloaded: give a local file"):
            models.prepare(model, images=given, prompts=QUESTION)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: expected a file, got a pipe, a device or the"):
        models.prepare(model, images=tmp_path / "pipe", prompts=QUESTION)
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(FileNotFoundError, match="does not exist: it is a link that leads nowhere"):
        models.prepare(model, images=tmp_path / "link", prompts=QUESTION)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*text\.png"):
        models.prepare(model, images=tmp_path / "text.png", prompts=QUESTION)
    Image.fromarray(PICTURE).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cannot read image .*half\.png"):
        models.prepare(model, images=tmp_path / "half.png", prompts=QUESTION)


@pytest.mark.parametrize("mask", [None, [[1, 1, 1, 1], [0, 0, 1, 1]], [[1, 1, 1, 1], [1, 1, 0, 0]]])
def test_single_image_tokens_of_legacy_processors_become_as_many_as_features(model, mask):
    ids = {None: [[1, 12, 5, 12], [1, 4, 12, 5]]}.get(mask) if mask is None else None
    if ids is None:
        second = [0, 0, 12, 5] if mask[1][0] == 0 else [12, 5, 0, 0]
        ids = [[1, 12, 5, 12], second]
    images = np.zeros((3, 3, 28, 28), np.float32)
    inputs = models.prepare(model, input_ids=ids, attention_mask=mask, pixel_values=images)
    np.testing.assert_array_equal(inputs.input_ids[0], [1, 12, 12, 12, 12, 5, 12, 12, 12, 12])
    words = inputs.input_ids[1][inputs.mask[1]].tolist()
    assert words == ([1, 4] if mask is None else []) + [12, 12, 12, 12, 5]
    back = mask is not None and mask[1][0] == 1
    assert bool(inputs.mask[1, 0]) == back


def test_processor_output_passes_through(model):
    ids, mask = [[0, 1, 12, 12, 12, 12, 5]], [[0, 1, 1, 1, 1, 1, 1]]
    images = np.zeros((1, 3, 28, 28), np.float32)
    inputs = models.prepare(model, input_ids=ids, attention_mask=mask, pixel_values=images)
    np.testing.assert_array_equal(inputs.input_ids, ids)
    np.testing.assert_array_equal(inputs.mask, np.array(mask, bool))


def test_redundant_outputs_of_a_processor_are_accepted(model):
    ids = np.array([[1, 12, 12, 12, 12, 5]])
    images = np.zeros((1, 3, 28, 28), np.float32)
    extra = {"token_type_ids": 0 * ids, "mm_token_type_ids": ids == 12, "special_tokens_mask": ids}
    inputs = models.prepare(model, input_ids=ids, pixel_values=images, **extra)
    np.testing.assert_array_equal(inputs.input_ids, ids)


def with_tokens(model, **tokens):
    """The model, whose checkpoint says so of its special tokens."""
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **tokens))


def test_padding_is_inferred_without_a_mask(model):
    """As transformers' `generate` does: the padding token, unless it ends answers."""
    padded = with_tokens(model, pad_token_ids=(0,))
    assert 0 not in model.config.eos_token_ids
    ids = [[0, 0, 4, 5], [3, 4, 5, 6], [3, 4, 0, 0]]
    inputs = models.prepare(padded, input_ids=ids)
    np.testing.assert_array_equal(inputs.mask, np.array(ids) != 0)
    whole = models.prepare(padded, input_ids=ids, attention_mask=np.ones((3, 4), int))
    assert whole.mask.all()
    # One image token becomes as many as features, behind the padding.
    picture = np.zeros((1, 3, 28, 28), np.float32)
    inputs = models.prepare(padded, input_ids=[[0, 1, 12, 5]], pixel_values=picture)
    np.testing.assert_array_equal(inputs.mask, [[0, 1, 1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="prompt 1 has the padding token 0 inside, at 2: give att"):
        models.prepare(padded, input_ids=[[0, 0, 3, 4], [3, 4, 0, 5]])
    with pytest.raises(ValueError, match="prompt 0 has the padding token 0 inside, at 1: give att"):
        models.prepare(padded, input_ids=[[3, 0, 4]])
    with pytest.raises(ValueError, match="empty prompt: row 1 is all padding"):
        models.prepare(padded, input_ids=[[3, 4], [0, 0]])


@pytest.mark.parametrize(
    ("pads", "ids", "reason"),
    [
        ((2,), [[2, 2, 3, 4]], r"\(token 2 pads and ends answers\)"),
        ((2,), [[3, 4], [3, 2]], r"\(token 2 pads and ends answers\)"),
        ((), [[3, 4], [3, 5]], r"\(there is no pad_token_id\)"),
    ],
)
def test_padding_that_cannot_be_told_is_named(model, pads, ids, reason):
    unknown = with_tokens(model, pad_token_ids=pads, eos_token_ids=(2,))
    with pytest.warns(UserWarning, match=f"every token counts as one of a prompt.*{reason}"):
        assert models.prepare(unknown, input_ids=ids).mask.all()
    assert models.prepare(unknown, input_ids=ids, attention_mask=np.ones_like(ids)).mask.all()
    assert models.prepare(unknown, input_ids=[[3, 4, 5]]).mask.all()


@pytest.mark.parity
def test_pytorch_tensors_of_every_dtype_with_or_without_gradients(model):
    torch = pytest.importorskip("torch")

    pixels = np.random.default_rng(0).normal(size=(1, 3, 28, 28)).astype(np.float32)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        images = torch.tensor(pixels, dtype=dtype, requires_grad=True)
        for form in (images, images * 1.0, [images[0]], images.detach()):
            inputs = models.prepare(
                model,
                input_ids=torch.tensor([[1, 12, 12, 12, 12, 5]], dtype=torch.int32),
                attention_mask=torch.ones(1, 6, dtype=torch.bool),
                pixel_values=form,
            )
            expected = images.detach().float().numpy()
            np.testing.assert_array_equal(inputs.pixel_values, expected)


@pytest.mark.parametrize("multiple", [0, -1, 2.5, "8"])
def test_padding_to_no_whole_number_is_refused(model, multiple):
    with pytest.raises(ValueError, match="multiple must be a whole number"):
        models.pad_to_multiple(models.prepare(model, prompts="what"), multiple)
