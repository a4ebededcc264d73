"""Calls of similar lengths share compiled programs: counted, and equal to those of exact sizes."""

import jax
import numpy as np
import pytest

import models
from models.sampling import Sampling
from tests.support.compiling import count_compilations
from tests.support.tiny_llava import batch, prompt, tiny_model

SIGNS = {"quant": "signs-1bit"}  # which compile in half the time of dictionary codes
SHORT, LONG = batch(prompt(3, "image", 5)), batch(prompt(3, "image", 48, seed=1))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize(
    ("quantize_at", "quant"), [("prompt", "signs-1bit"), ("image", "vkq-1bit")]
)
def test_a_question_of_another_length_about_the_same_picture_compiles_nothing(
    model, quantize_at, quant
):
    options = {"stop_tokens": (), "quant": quant}

    def ask(inputs, count):
        return models.generate(
            model, inputs, max_new_tokens=count, quantize_at=quantize_at, **options
        )

    ask(SHORT, 4)
    with count_compilations() as compiled:
        got = ask(batch(prompt(3, "image", 48, seed=1)), 5)
        ask(SHORT, 1)
    assert compiled == []
    assert got.tokens.shape == (1, 5)
    if quantize_at == "prompt":
        with count_compilations() as compiled:
            exact = models.generate(model, LONG, max_new_tokens=5, bucketing=False, **options)
        assert compiled != []
        np.testing.assert_array_equal(got.tokens, exact.tokens)
        assert exact.cache.text.cache_length == 3 + 48 + 5
        assert got.cache.text.cache_length == 64


def test_another_temperature_or_penalty_compiles_nothing(model):
    def draw(inputs, count, temperature):
        sampling = Sampling(temperature=temperature, top_p=0.9, repetition_penalty=temperature)
        return models.generate(
            model, inputs, max_new_tokens=count, sampling=sampling, key=jax.random.key(0), **SIGNS
        )

    draw(SHORT, 3, 0.7)
    with count_compilations() as compiled:
        draw(LONG, 6, 2.0)
    assert compiled == []


def test_later_turns_of_one_room_compile_once(model):
    def turn(cache, words, seed=0):
        question = batch(prompt(words, seed=seed))
        return models.generate(
            model, question, cache=cache, max_new_tokens=3, stop_tokens=(), cache_length=256
        ).cache

    first = models.generate(
        model, SHORT, max_new_tokens=3, stop_tokens=(), cache_length=256, **SIGNS
    )
    second = turn(first.cache, 4)
    with count_compilations() as compiled:
        fourth = turn(turn(second, 30, seed=1), 7, seed=2)
    assert compiled == []
    assert fourth.text.length.tolist() == [8 + 3 + 4 + 3 + 30 + 3 + 7 + 3]


def test_streaming_compiles_nothing_for_another_length(model):
    def watch(inputs, count):
        return [
            *models.stream(model, inputs, max_new_tokens=count, chunk=2, stop_tokens=(), **SIGNS)
        ]

    watch(SHORT, 3)
    with count_compilations() as compiled:
        watch(LONG, 4)
    assert compiled == []


def test_going_past_the_context_is_a_warning(model, monkeypatch):
    monkeypatch.setattr("models.generation.context.context_length", lambda config: 32)
    got = models.generate(model, SHORT, max_new_tokens=4, stop_tokens=(), **SIGNS)
    with pytest.warns(UserWarning, match=r"24 of the prompt and max_new_tokens=9 are more than"):
        models.generate(model, SHORT, max_new_tokens=9, **SIGNS)
    with pytest.warns(UserWarning, match="28 tokens of earlier turns, 3 of the prompt") as caught:
        models.generate(model, batch(prompt(3)), cache=got.cache, max_new_tokens=2)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="context of 32 tokens"):
        next(models.stream(model, SHORT, max_new_tokens=9, **SIGNS))
