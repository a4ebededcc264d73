"""The embedded checkpoint: a model that reads, so that answers mean something."""

import jax.numpy as jnp
import pytest

import models
import vkq_jax
from vkq_apps.training.heldout import heldout
from vkq_apps.training.pictures import KINDS


@pytest.fixture(scope="module")
def model():
    # Not bfloat16: where two tokens nearly tie, the machine's rounding would choose the answer.
    return models.load("tiny", dtype=jnp.float32)


@pytest.fixture(scope="module")
def asked():
    """Two questions about one picture of each kind, one where it has no more."""
    pictures = [heldout(kind, 0) for kind in KINDS]
    return [(picture.image, turn) for picture in pictures for turn in picture.turns[:2]]


@pytest.fixture(scope="module")
def answers(model, asked):
    inputs = models.prepare(
        model,
        images=[image for image, _ in asked],
        prompts=[models.chat_prompt(model, turn.question) for _, turn in asked],
    )

    def answer(quant):
        generation = models.generate(
            model, inputs, quant=quant, max_new_tokens=40, quantize_at="image"
        )
        texts = models.decode(model, generation.tokens, generation.lengths)
        return [text.strip() for text in texts], vkq_jax.cache_nbytes(generation.cache)

    return {quant: answer(quant) for quant in ("none", "minmax-8bit", "vkq-1bit")}


def test_its_tables_are_those_of_todays_presets(model):
    for preset in model.calibrated.codes.presets:
        assert preset.quant in vkq_jax.calibrated_presets[preset.name]


def test_it_reads(asked, answers):
    right = [a == turn.answer for a, (_, turn) in zip(answers["none"][0], asked, strict=True)]
    assert sum(right) >= 0.9 * len(asked)


def test_eight_bits_give_the_same_answers(answers):
    assert answers["minmax-8bit"][0] == answers["none"][0]


def test_one_bit_keeps_the_answers_and_saves_nine_tenths(answers):
    same = [a == b for a, b in zip(answers["vkq-1bit"][0], answers["none"][0], strict=True)]
    assert sum(same) >= 0.8 * len(same)
    assert answers["vkq-1bit"][1].visual_reduction >= 0.9
