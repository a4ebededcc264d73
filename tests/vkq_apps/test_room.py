"""How many tokens of an answer fit the context and the memory of a model."""

import dataclasses
import re

import jax.numpy as jnp
import pytest

from models.generation.context import context_length
from models.generation.room import check_text_fits
from models.layers.rope_config import RopeConfig, RopeKind
from tests.support.tiny_llava import CONFIG
from vkq_apps.terminal.room import check_room

LINEAR = RopeConfig(head_dim=16, max_length=512, kind=RopeKind.LINEAR, factor=4.0)


def test_the_room_of_a_model(monkeypatch):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, rope=LINEAR))
    assert context_length(CONFIG) == 512
    assert context_length(config) == 2048
    check_room(config, visual=16, text=1000, max_new_tokens=1032)
    with pytest.raises(ValueError, match="expected at most 1032, since the model's context holds"):
        check_room(config, visual=16, text=1000, max_new_tokens=1033)
    with pytest.raises(ValueError, match="the prompt is too long: 2048 visual and 0 text tokens"):
        check_room(config, visual=2048, text=0, max_new_tokens=1)
    check_room(config, visual=2048, text=0, max_new_tokens=0)
    one = 2 * 2 * 3 * 2 * 16  # keys and values, two bytes, layers, heads, channels
    monkeypatch.setattr("models.generation.room.free_memory", lambda devices: 100 * one)
    check_room(config, visual=1000, text=60, max_new_tokens=40)
    with pytest.raises(ValueError, match=r"--max-new-tokens: .* at most 39, since 101 text tokens"):
        check_room(config, visual=1000, text=61, max_new_tokens=40)
    # A byte a number, and a scale of two bytes for 16 of them: 16 / 9 times as many tokens.
    check_room(config, visual=1000, text=61, max_new_tokens=116, text_bits=8)
    with pytest.raises(ValueError, match=r"at most 116, since 178 text tokens"):
        check_room(config, visual=1000, text=61, max_new_tokens=117, text_bits=8)


def test_the_answer_that_an_error_offers_fits_the_memory(monkeypatch):
    """Rounded up, a few tokens more may take much more."""
    one = 2 * 2 * 3 * 2 * 16
    monkeypatch.setattr("models.generation.room.free_memory", lambda devices: 100 * one)

    def check(most):
        check_text_fits(
            CONFIG,
            batch=1,
            filled=20,
            tokens=20,
            max_new_tokens=most,
            dtype=jnp.bfloat16,
            rounded=lambda count: -(-count // 64) * 64,
        )

    with pytest.raises(ValueError, match="max_new_tokens: expected at most") as error:
        check(100)
    offered = int(re.search(r"at most (\d+)", str(error.value))[1])
    assert offered > 20
    check(offered)
