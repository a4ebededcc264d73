"""Logits processors against plain NumPy and, marked parity, against transformers' own."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import Sampling
from models.generation.token_chooser import TokenChooser
from models.generation.token_history import TokenHistory
from tests.support import sampling_oracle
from tests.support.hf_parity import since

VOCAB, SLOTS, BATCH, MAX_NEW = 23, 14, 3, 5
STOPS = (2, 7)


def tokens_of(rng, count, first=0, stop=VOCAB):
    return tuple(rng.randrange(first, stop) for _ in range(count))


def runs(rng):
    return tuple(tokens_of(rng, rng.choice((1, 1, 2, 3))) for _ in range(6))


SETTINGS = {
    "repetition_penalty": lambda rng: rng.choice((0.5, 1.2, 3.0)),
    "no_repeat_ngram_size": lambda rng: rng.choice((1, 2, 3, 40)),
    "bad_words_ids": lambda rng: ((7,), (3, 7), *runs(rng)),
    "sequence_bias": lambda rng: tuple({run: rng.uniform(-9, 9) for run in runs(rng)}.items()),
    "suppress_tokens": lambda rng: (*tokens_of(rng, 3, first=12), VOCAB + 4),
    "begin_suppress_tokens": lambda rng: tokens_of(rng, 3),
    "forced_bos_token_id": lambda rng: tokens_of(rng, 1, stop=12),
    "forced_eos_token_id": lambda rng: tokens_of(rng, rng.choice((1, 2)), stop=12),
    "min_length": lambda rng: rng.randrange(1, SLOTS),
    "min_new_tokens": lambda rng: rng.randrange(MAX_NEW),
    "temperature": lambda rng: rng.choice((0.3, 1.0, 2.5)),
    "top_k": lambda rng: rng.choice((1, 5, VOCAB - 1, VOCAB, 99)),
    "top_p": lambda rng: rng.choice((0.05, 0.3, 0.5, 0.9, 0.99)),
    "min_p": lambda rng: rng.choice((0.01, 0.2, 1.0)),
    "typical_p": lambda rng: rng.choice((0.1, 0.5, 0.95)),
    "epsilon_cutoff": lambda rng: rng.choice((0.01, 0.1)),
    "eta_cutoff": lambda rng: rng.choice((0.01, 0.3)),
}
DRAWN = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def draw_case(rng, names=None):
    """Settings, and the sequences they meet: tokens repeat, prompts may be one token long."""
    names = names or [name for name in SETTINGS if rng.random() < 0.4]
    sampling = Sampling(**{name: SETTINGS[name](rng) for name in names})
    emitted = rng.randrange(MAX_NEW)
    lengths = [rng.choice((1, 2, SLOTS - MAX_NEW)) + emitted for _ in range(BATCH)]
    few = rng.sample(range(VOCAB), 5)
    rows = [[rng.choice(few) for _ in range(length)] for length in lengths]
    logits = np.array([[rng.gauss(0, 3) for _ in range(VOCAB)] for _ in rows], np.float32)
    return sampling, rows, emitted, logits


def processed(sampling, rows, emitted, logits, stops=STOPS):
    """As the decode loop computes it; unused slots hold tokens that must not matter."""
    tokens = np.full((len(rows), SLOTS), 3, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    lengths = jnp.array([len(row) for row in rows], jnp.int32)
    history = TokenHistory(jnp.array(tokens), lengths, jnp.int32(emitted), jnp.int32(MAX_NEW))
    chooser = TokenChooser.create(sampling, stops)
    return np.asarray(chooser.process(jnp.array(logits), history, lengths))


def assert_same(got, expected):
    """The same tokens are left, at the same log-probabilities."""
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    for one, other in zip(got, expected, strict=True):
        left = np.isfinite(other)
        if left.any():
            one, other = (x[left].astype(np.float64) for x in (one, other))
            shift = np.mean(one - other)
            np.testing.assert_allclose(one - shift, other, rtol=1e-4, atol=1e-4)


CASES = [[name] for name in SETTINGS if name not in DRAWN]
CASES += [["temperature", name] for name in DRAWN]
CASES += [None] * 40


@pytest.mark.parametrize("block", range(4))
def test_each_setting_and_their_order_against_numpy(block):
    for number, names in enumerate(CASES):
        if number % 4 == block:
            rng = random.Random(f"processors/{number}")
            case = draw_case(rng, names)
            sampling, rows, emitted, logits = case
            expected = [
                sampling_oracle.process(
                    sampling, x, row, stops=STOPS, emitted=emitted, max_new_tokens=MAX_NEW
                )
                for x, row in zip(logits, rows, strict=True)
            ]
            assert_same(processed(*case), np.array(expected))


def test_the_nucleus_by_hand():
    """0.5, 0.3, 0.15, 0.05: the token that reaches the mass stays, and no later one."""
    logits = np.log(np.array([[0.3, 0.05, 0.5, 0.15]], np.float32))
    for top_p, kept in ((0.0, [2]), (0.49, [2]), (0.6, [0, 2]), (0.79, [0, 2]), (0.81, [0, 2, 3])):
        chooser = TokenChooser.create(Sampling(temperature=1.0, top_p=top_p), ())
        got = chooser.process(jnp.array(logits), None, jnp.zeros(1, jnp.int32))
        assert np.flatnonzero(np.isfinite(got[0])).tolist() == kept, top_p


def test_runs_of_tokens_match_from_the_first_slot_on():
    """The last token of a run is banned, wherever the others lie, and only that."""
    sampling = Sampling(bad_words_ids=[[4, 5, 6], [5, 9], [8, 4, 5, 1]])
    got = processed(sampling, [[4, 5], [3, 5], [4, 4]], 1, np.zeros((3, VOCAB), np.float32))
    banned = [np.flatnonzero(np.isinf(row)).tolist() for row in got]
    assert banned == [[6, 9], [9], []]


def test_the_order_within_an_ngram_and_the_first_token_of_an_answer():
    rows = [[1, 2, 3, 1, 2], [1, 2, 3, 2, 1]]
    for settings, emitted, expected in (
        ({"no_repeat_ngram_size": 3}, 1, [[3], []]),
        ({"begin_suppress_tokens": [4]}, 0, [[4], [4]]),
        ({"begin_suppress_tokens": [4]}, 1, [[], []]),
    ):
        got = processed(Sampling(**settings), rows, emitted, np.zeros((2, VOCAB), np.float32))
        assert [np.flatnonzero(np.isinf(row)).tolist() for row in got] == expected


def test_draws_follow_the_probabilities():
    """All that is left is drawn, as often as it should be; nothing else is."""
    logits = jnp.log(jnp.array([0.3, 0.05, 0.5, 0.15]))
    chooser = TokenChooser.create(Sampling(temperature=2.0, top_k=3), ())
    many = jnp.broadcast_to(logits, (20_000, 4))
    drawn = chooser.choose(many, None, jnp.zeros(len(many), jnp.int32), jax.random.key(0))
    weights = np.sqrt([0.3, 0.0, 0.5, 0.15])
    frequency = np.bincount(drawn, minlength=4) / len(many)
    np.testing.assert_allclose(frequency, weights / weights.sum(), atol=0.015)
    assert frequency[1] == 0


def test_no_temperature_is_too_small_or_too_large():
    logits = jnp.array([[3e38, -3e38, 0.0], [1.0, 2.0, 3.0]])
    for temperature in (1e-320, 1e-6, 1e38):
        chooser = TokenChooser.create(Sampling(temperature=temperature), ())
        got = chooser.process(logits, None, jnp.zeros(2, jnp.int32))
        assert not np.isnan(got).any()
        assert (got.max(-1) == 0).all()


def test_settings_that_are_off_leave_nothing_to_do():
    off = Sampling(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, epsilon_cutoff=0.0,
        eta_cutoff=0.0, repetition_penalty=1.0, no_repeat_ngram_size=0, bad_words_ids=(),
        sequence_bias=(), suppress_tokens=(), begin_suppress_tokens=(), forced_bos_token_id=(),
        forced_eos_token_id=(), min_length=0, min_new_tokens=0,
    )  # fmt: skip
    plain = TokenChooser.create(Sampling(), STOPS)
    assert jax.tree.structure(TokenChooser.create(off, STOPS)) == jax.tree.structure(plain)
    assert not plain.needs_history
    assert not jax.tree.leaves(plain)


def test_lengths_mean_nothing_where_nothing_stops():
    chooser = TokenChooser.create(Sampling(min_length=9, min_new_tokens=9), ())
    assert jax.tree.structure(chooser) == jax.tree.structure(TokenChooser.create(Sampling(), ()))


def test_a_new_number_keeps_the_structure_that_jit_sees():
    settings = {"top_p": 0.5, "repetition_penalty": 1.1, "top_k": 3, "min_new_tokens": 1}
    others = {"top_p": 0.6, "repetition_penalty": 1.2, "top_k": 4, "min_new_tokens": 2}
    one = TokenChooser.create(Sampling(temperature=1.0, **settings), STOPS)
    other = TokenChooser.create(Sampling(temperature=2.0, **others), STOPS)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert len(jax.tree.leaves(one)) == 5


def test_settings_that_look_back_need_a_history():
    for name in ("repetition_penalty", "no_repeat_ngram_size", "begin_suppress_tokens"):
        chooser = TokenChooser.create(Sampling(**{name: SETTINGS[name](random.Random(0))}), STOPS)
        with pytest.raises(ValueError, match=r"TokenHistory\.of_prompts"):
            chooser.process(jnp.zeros((1, VOCAB)), None, jnp.zeros(1, jnp.int32))


@since("5.24", "a sequence_bias as long as the tokens so far is left out, and token 0 refused")
@pytest.mark.parity
@pytest.mark.parametrize("block", range(4))
def test_each_setting_and_their_order_against_transformers(block):
    pytest.importorskip("torch")
    for number, names in enumerate(CASES):
        if number % 4 == block:
            rng = random.Random(f"parity/{number}")
            sampling, rows, emitted, logits = draw_case(rng, names)
            # transformers has no two rows of unlike lengths without padding: one by one.
            for row, x in zip(rows, logits, strict=True):
                got = processed(sampling, [row], emitted, x[None])
                assert_same(got, by_transformers(sampling, row, emitted, x[None]))


def by_transformers(sampling, row, emitted, logits):
    """Through the list of processors that transformers' own `generate` would make."""
    import torch
    from transformers import GenerationConfig, GenerationMixin

    def plain(value):
        return [plain(x) for x in value] if isinstance(value, tuple) else value

    given = {name: plain(v) for name, v in vars(sampling).items() if v is not None}
    if sampling.min_new_tokens is not None:
        given.pop("min_length", None)  # as transformers' generate does
    given |= {"forced_bos_token_id": given.get("forced_bos_token_id", [None])[0]}
    given |= {"top_k": given.get("top_k", 0)}
    prompt = len(row) - emitted
    config = GenerationConfig(
        **given, do_sample=not sampling.greedy, max_length=prompt + MAX_NEW, num_beams=1
    )
    config._eos_token_tensor = torch.tensor(STOPS)

    class Stub(GenerationMixin):
        class config:
            is_encoder_decoder = False

    ids = torch.tensor([row])
    processors = Stub()._get_logits_processor(
        config,
        input_ids_seq_length=prompt,
        encoder_input_ids=ids[:, :prompt],
        device="cpu",
        model_kwargs={"attention_mask": torch.ones_like(ids)},
    )
    return processors(ids, torch.tensor(logits)).numpy()
