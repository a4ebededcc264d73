"""The recipe of the embedded checkpoint, in its smoke size."""

import random
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

import models
from models.loading import TINY
from vkq_apps.training import chunks, prompts
from vkq_apps.training.catalogue import (
    SPRITES,
    character_class,
    color_class,
    number_class,
    sprite_class,
)
from vkq_apps.training.export import export_state
from vkq_apps.training.heldout import calibration_picture, heldout
from vkq_apps.training.loop import SMALL, STATE_FILE, train
from vkq_apps.training.losses import answer_loss
from vkq_apps.training.model import ModelSize, create_model, with_checkpoint
from vkq_apps.training.optimizer import FittedSchedule, Schedule, make_optimizer
from vkq_apps.training.options import SMOKE, TrainOptions
from vkq_apps.training.pictures import (
    KINDS,
    NUM_FACTS,
    Turn,
    choose_kind,
    make_picture,
    shares_of,
)
from vkq_apps.training.piece import Piece
from vkq_apps.training.rows import pack_row
from vkq_apps.training.tokenizer import vocab_size
from vkq_apps.training.train import main


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_the_same_always_and_ask_something(kind):
    first, again, other = (make_picture(kind, seed) for seed in ("a", "a", "b"))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.turns == again.turns
    assert first.image.shape == (336, 336, 3)
    assert first.turns
    assert (first.image != other.image).any()


def test_auxiliary_labels_tie_a_bar_to_its_name():
    picture = make_picture("bars", "a")
    asked = {turn.question: turn.answer for turn in picture.turns}
    things, facts = picture.labels[:, 0], picture.labels[:, -NUM_FACTS:]
    for question, color in asked.items():
        if question.startswith("what color is bar "):
            name = character_class(question[-2])
            value = asked[question.replace("color is", "is the value of")]
            expected = [color_class(color), name, number_class(int(value))]
            assert facts[things == name, :3].tolist().count(expected) >= 1


def test_a_scene_states_every_answer_about_positions_as_a_fact():
    picture = max((make_picture("scene", s) for s in range(4)), key=lambda p: len(p.turns))
    asked = [turn for turn in picture.turns if turn.task == "position"]
    assert len(asked) > 1
    for turn in asked:
        _, _, direction, *_, name = turn.question.removesuffix("?").split()
        fact = picture.labels[:, 3 + ["left", "right", "above", "below"].index(direction)]
        own = picture.labels[:, 0] == sprite_class(SPRITES.index(name))
        assert set(fact[own].tolist()) == {sprite_class(SPRITES.index(turn.answer))}


def test_the_cells_of_a_table_are_those_of_its_rows_and_columns():
    compared = 0
    for seed in range(8):
        asked = {turn.question: turn.answer for turn in make_picture("table", seed).turns}
        for question, answer in asked.items():
            if not question.startswith("what is the "):
                continue
            name, row = question.removeprefix("what is the ").removesuffix("?").split(" in row ")
            if column := asked.get(f"read the {name} column"):
                assert column.split(", ")[int(row) - 1] == answer
                compared += 1
            if cells := asked.get(f"read row {row}"):
                assert answer in cells.split(", ")
                compared += 1
    assert compared > 8


def test_every_token_of_an_answer_weighs_less_the_longer_it_is():
    short = Turn("is there a dog?", "no", "presence")
    long = Turn("read row 1", "12, 34", "table_row")
    rows = jnp.asarray(pack_row([short, long]))[None]
    wrong = jnp.zeros((1, rows.shape[-1], vocab_size()))

    def loss_with_one_right(turn):
        place = int(jnp.argmax((rows[0, 1] == turn) & (rows[0, 3] >= 0)))
        logits = wrong.at[0, place, rows[0, 3, place]].set(100.0)
        return float(answer_loss(logits, rows))

    assert loss_with_one_right(0) < loss_with_one_right(1) < float(answer_loss(wrong, rows))


def test_a_training_begins_with_a_checkpoint_of_its_own_size_only():
    _, params = create_model(ModelSize(), 0)
    started = with_checkpoint(params, str(TINY))
    expected = models.load("tiny", dtype=jnp.float32, layers_apart=False).params
    for a, b in zip(jax.tree.leaves(started["llava"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    _, small = create_model(SMALL, 0)
    with pytest.raises(ValueError, match="another size or vocabulary"):
        with_checkpoint(small, str(TINY))


def test_pictures_of_different_uses_and_seeds_are_different():
    pictures = [
        heldout("shapes", 0),
        heldout("shapes", 1),
        heldout("shapes", 0, seed=0),
        heldout("shapes", 0, seed=1),
        calibration_picture("shapes", 0),
        calibration_picture("shapes", 0, seed=1),
        make_picture("shapes", "train/1/0"),
    ]
    assert len({picture.image.tobytes() for picture in pictures}) == len(pictures)


def test_shares_of_kinds_are_those_that_were_asked_for(monkeypatch):
    shares = shares_of("text=3, table=1,document=0,scene=0,shapes=0,bars=0")
    rng = random.Random(0)
    drawn = [choose_kind(rng, shares) for _ in range(400)]
    assert set(drawn) == {"text", "table"}
    assert drawn.count("text") == pytest.approx(300, abs=40)
    assert shares_of("") == dict(KINDS)
    kinds = []
    monkeypatch.setattr(chunks, "render_row", lambda chunk, index, kind, *of: kinds.append(kind))
    chunks.fill_chunk(chunks.new_chunk(20), "seed", 1.0, shares=shares)
    assert set(kinds) == {"text", "table"}


@pytest.mark.parametrize("shares", ["text", "words=1", "text=-1", "text=nan", "text=x", "text=inf"])
def test_wrong_shares_are_one_clear_error(tmp_path, capsys, shares):
    assert main(["--out", str(tmp_path / "run"), "--smoke", "--shares", shares]) == 2
    error = capsys.readouterr().err
    assert "expected KIND=NUMBER with commas between, kinds of text, document, " in error
    assert shares in error
    assert not (tmp_path / "run").exists()


def test_shares_of_nothing_are_refused():
    with pytest.raises(ValueError, match="expected a share above 0, got 0 for all kinds"):
        shares_of(",".join(f"{kind}=0" for kind in KINDS))


@pytest.mark.parametrize("text", ["$385.16", "Ra Qak", "2 boats, 2 cars", "what is the total?"])
def test_the_tokenizer_gives_text_back(text):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == text


def test_the_chat_template_is_the_prompt_of_training():
    model = models.load("tiny")
    assert models.chat_prompt(model, "what is the tax?") == prompts.prompt("what is the tax?")


def test_updates_of_stacked_matrices_are_nearly_orthogonal():
    """Each matrix of a stack by itself, in size as those of Adam, at the schedule's rate."""
    schedule = Schedule(steps=100, warmup=10)
    params = {"layers": {"kernel": jnp.ones((3, 8, 16))}}
    gradient = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), params)
    optimizer = make_optimizer(schedule, weight_decay=0.0)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    assert float(schedule.learning_rate(0)) == pytest.approx(schedule.peak / 10, rel=1e-5)
    scale = float(schedule.learning_rate(0)) * 0.2 * 16**0.5
    values = jnp.linalg.svd(updates["layers"]["kernel"] / scale, compute_uv=False)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5
    assert float(schedule.learning_rate(100)) == pytest.approx(schedule.peak * 0.02, rel=1e-3)


@pytest.mark.ci
def test_a_resumed_training_equals_one_piece_and_its_export_loads(tmp_path, monkeypatch):
    def options(out, **changes):
        settings = {**SMOKE, "smoke": True, "steps": 4, "batch": 2, "heldout": 2, **changes}
        return TrainOptions(out=tmp_path / out, **settings)

    whole = train(options("whole"))
    with monkeypatch.context() as patch:
        patch.setattr("vkq_apps.training.piece.Piece.run", _stop_after(2))
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
    """`Piece.run` that gets a signal to stop while it draws the batch of step `steps`."""
    run = Piece.run

    def stopped(piece, state, number):
        draw = piece.feed.sources

        def sources(step, difficulty):
            if step == steps - 1:
                piece.stop.append(signal.SIGTERM)
            return draw(step, difficulty)

        piece.feed.sources = sources
        return run(piece, state, number)

    return stopped


def test_a_fitted_schedule_ends_with_its_time():
    schedule = FittedSchedule(Schedule(steps=10_000), ends=100.0)
    schedule.measure(100, 10.0)
    assert schedule.steps == 10_000
    schedule.measure(200, 20.0)
    assert schedule.steps == 1000
    schedule.measure(700, 80.0)  # 60 steps in 7 seconds
    assert schedule.steps == 700 + int(600 / 70 * 20)
    assert schedule.learning_rate(schedule.steps) == pytest.approx(0.02 * 3e-3)
    schedule.measure(900, 101.0)
    assert schedule.steps == 871
