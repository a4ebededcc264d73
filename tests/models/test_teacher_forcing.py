"""Answers followed in one pass are those of decoding, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from models.generation.teacher_forcing import EvaluatedModel, Prompted, compare
from models.inputs.split import split_after_images
from tests.support.tiny_llava import WINDOWED, batch, prompt, tiny_model

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 3, seed=1))
STEPS = 6


@pytest.mark.parametrize(
    ("config", "name"), [({}, "signs-1bit"), ({"config": WINDOWED}, "kivi-2bit")]
)
def test_following_an_answer_is_decoding_it(config, name):
    evaluated = EvaluatedModel(tiny_model(**config))
    images, question = split_after_images(batch(*ROWS))
    owner = jnp.arange(2, dtype=jnp.int32)
    room = images.prompt_shape.text + question.prompt_shape.suffix + STEPS
    reading = evaluated.read(images, question, owner, cache_length=room)
    coded = evaluated.read_coded(reading, quant=vkq_jax.presets[name], quantize_at="image")
    own = evaluated.answer(coded, STEPS, steps=STEPS)
    lengths = jnp.minimum(own.lengths, jnp.asarray([STEPS, 3]))  # one is cut short
    followed = evaluated.follow(coded, own.tokens, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            followed.kept[row, :length], own.kept[row, :length], rtol=1e-4, atol=1e-4
        )
    same = compare(followed, followed)
    np.testing.assert_array_equal(same.kl, 0)
    np.testing.assert_array_equal(same.first_difference, lengths)


def test_an_answer_of_one_token_is_followed():
    logits = jnp.asarray([[1.0, 3.0, 2.0]])
    prompted = Prompted(logits, None)  # type: ignore[arg-type]
    got = EvaluatedModel(tiny_model()).follow(
        prompted, jnp.asarray([[1]], jnp.int32), jnp.asarray([1], jnp.int32)
    )
    np.testing.assert_allclose(got.kept[:, 0], jax.nn.log_softmax(logits), atol=1e-6)
    assert got.kept.shape == (1, 1, 3)
