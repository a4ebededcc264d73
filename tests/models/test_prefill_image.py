"""One picture, many questions: read once, coded once, in memory once."""

import numpy as np
import pytest

import models
import vkq_jax
from models.inputs.split import split_after_images
from tests.support.compiling import count_compilations
from tests.support.tiny_llava import WINDOWED, batch, prompt, tiny_model

QUESTIONS = [prompt(words, seed=10 + words) for words in (5, 2, 7)]
START = prompt(3, "image")
FOUR = {"max_new_tokens": 4, "stop_tokens": ()}


@pytest.fixture(scope="module")
def model():
    return tiny_model(config=WINDOWED)


@pytest.mark.ci  # compiles a generation for each question
def test_questions_share_one_picture(model):
    cache = models.prefill_image(model, batch(START + QUESTIONS[0]))
    together = models.generate(model, batch(*QUESTIONS), cache=cache, **FOUR)
    for row, question in enumerate(QUESTIONS):
        alone = models.generate(model, batch(START + question), quantize_at="image", **FOUR)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
    one = vkq_jax.cache_nbytes(alone.cache).visual
    assert vkq_jax.cache_nbytes(together.cache).visual == one
    later = models.generate(model, batch(*QUESTIONS), cache=together.cache, **FOUR)
    assert vkq_jax.cache_nbytes(later.cache).visual == one
    with count_compilations() as compiled:
        models.generate(model, batch(*QUESTIONS[::-1]), cache=cache, **FOUR)
    assert compiled == []


def test_bad_arguments(model):
    with pytest.raises(ValueError, match="expected a prompt with a picture, got one without"):
        models.prefill_image(model, batch(prompt(3)))
    with pytest.raises(ValueError, match="unknown preset"):
        models.prefill_image(model, batch(START), quant="vkq-3bit")


def test_questions_are_what_follows_the_picture_in_whole_prompts():
    tiny = models.load("tiny")
    picture = np.full((20, 30, 3), 90, np.uint8)
    prompts = [models.chat_prompt(tiny, text) for text in ("what is it?", "how many things?")]
    asked = models.prepare_questions(tiny, images=picture, prompts=prompts)
    whole = models.prepare(tiny, images=[picture, picture], prompts=prompts)
    _, after = split_after_images(whole)
    for got, wanted in zip(rows_of(asked), rows_of(after), strict=True):
        assert got == wanted
    assert asked.pixel_values is None
    with pytest.raises(ValueError, match="prompt 1 has 1 image and 2 image tokens"):
        models.prepare_questions(tiny, images=picture, prompts=[prompts[0], "<image><image>"])
    with pytest.raises(ValueError, match="has nothing behind its last image token"):
        models.prepare_questions(tiny, images=picture, prompts="USER: <image>")
    with pytest.raises(ValueError, match="expected a picture or several"):
        models.prepare_questions(tiny, images=[], prompts=prompts)


def rows_of(inputs):
    rows = zip(np.asarray(inputs.input_ids), np.asarray(inputs.mask), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]
