"""The recipe of the embedded checkpoint, in its smoke size."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

import models
from models.loading import TINY
from vkq_apps.training import prompts
from vkq_apps.training.export import export_state
from vkq_apps.training.heldout import heldout, questions, shuffled
from vkq_apps.training.loop import STATE_FILE, _Piece, train
from vkq_apps.training.muon import orthogonalize
from vkq_apps.training.options import SMOKE, TrainOptions
from vkq_apps.training.pictures import KINDS, make_picture


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_the_same_always_and_ask_something(kind):
    first, again, other = (make_picture(kind, seed) for seed in ("a", "a", "b"))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.turns == again.turns
    assert first.image.shape == (336, 336, 3)
    assert first.turns
    assert (first.image != other.image).any()


def test_the_control_asks_about_another_picture():
    asked = next(iter(questions(1, ("document",))))
    control = shuffled(asked)
    assert (control.question, control.answer) == (asked.question, asked.answer)
    np.testing.assert_array_equal(control.image, heldout("document", 1).image)


@pytest.mark.parametrize("text", ["$385.16", "Ra Qak", "2 boats, 2 cars", "what is the total?"])
def test_the_tokenizer_gives_text_back(text):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == text


def test_the_chat_template_is_the_prompt_of_training():
    model = models.load("tiny")
    assert models.chat_prompt(model, "what is the tax?") == prompts.prompt("what is the tax?")


def test_muon_makes_updates_nearly_orthogonal():
    x = jax.random.normal(jax.random.key(0), (2, 8, 16))
    values = jnp.linalg.svd(orthogonalize(x).astype(jnp.float32), compute_uv=False)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5


def test_a_resumed_training_equals_one_piece_and_its_export_loads(tmp_path, monkeypatch):
    def options(out, **changes):
        settings = {**SMOKE, "smoke": True, "steps": 4, "batch": 2, "heldout": 2, **changes}
        return TrainOptions(out=tmp_path / out, **settings)

    whole = train(options("whole"))
    with monkeypatch.context() as patch:
        patch.setattr("vkq_apps.training.loop._Piece.run", _stop_after(2))
        train(options("pieces"))
    pieces = train(options("pieces", resume=True))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(pieces.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    info = export_state(tmp_path / "whole" / STATE_FILE, tmp_path / "checkpoint")
    assert info["step"] == 4
    model = models.load(tmp_path / "checkpoint")
    inputs = models.prepare(
        model, images=heldout("text", 0).image, prompts=prompts.prompt("read the text")
    )
    assert bool(jnp.isfinite(models.forward(model, inputs)).all())


def _stop_after(steps):
    """`_Piece.run` that gets a signal to stop while it draws the batch of step `steps`."""
    run = _Piece.run

    def stopped(piece, state, number):
        draw = piece.feed.sources

        def sources(step, difficulty):
            if step == steps - 1:
                piece.stop.append(signal.SIGTERM)
            return draw(step, difficulty)

        piece.feed.sources = sources
        return run(piece, state, number)

    return stopped
