"""`Sampling`: its values, how it goes over a checkpoint's, and what generation_config.json says."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import GenerationConfig

import models
from models import Sampling
from models.generation import argument_checks
from models.generation.argument_checks import settle_sampling
from models.generation.generation_config import (
    CHANGES_NOTHING,
    KNOWN,
    NOT_HONOURED,
    READ,
    read_sampling,
)
from tests.support.tiny_llava import batch, prompt, tiny_model

VOCAB = 64


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def checkpoint(model, **settings):
    """The model, whose checkpoint asks for these settings."""
    return dataclasses.replace(
        model, config=dataclasses.replace(model.config, sampling=Sampling(**settings))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature: expected a finite number, got nan"),
        ({"temperature": float("inf")}, "temperature: expected a finite number, got inf"),
        ({"temperature": 10**400}, "temperature: expected a finite number, got 1000"),
        ({"temperature": "hot"}, "temperature: expected a finite number, got 'hot'"),
        ({"temperature": True}, "temperature: expected a finite number, got True"),
        ({"top_p": 1.1}, "top_p must be at least 0 and at most 1, got 1.1"),
        ({"top_p": -0.1}, "top_p must be at least 0 and at most 1, got -0.1"),
        ({"min_p": 2}, "min_p must be at least 0 and at most 1, got 2"),
        ({"typical_p": 0.0}, "typical_p must be above 0 and at most 1, got 0.0"),
        ({"typical_p": 1.5}, "typical_p must be above 0 and at most 1, got 1.5"),
        ({"epsilon_cutoff": -1.0}, "epsilon_cutoff must be at least 0 and at most 1, got -1"),
        ({"eta_cutoff": 1.5}, "eta_cutoff must be at least 0 and at most 1, got 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
        ({"top_k": -1}, r"top_k must be an integer from 0 \(off\) to 2147483647, got -1"),
        ({"top_k": 2**31}, r"top_k must be an integer .* got 2147483648"),
        ({"top_k": 3.0}, "top_k must be an integer .* got 3.0"),
        ({"min_length": True}, "min_length must be an integer .* got True"),
        ({"min_new_tokens": "5"}, "min_new_tokens must be an integer .* got '5'"),
        ({"no_repeat_ngram_size": None, "min_new_tokens": -3}, "min_new_tokens must be .* got -3"),
        ({"suppress_tokens": 5}, "suppress_tokens: expected a list, got 5"),
        ({"suppress_tokens": "abc"}, "suppress_tokens: expected a list, got 'abc'"),
        ({"suppress_tokens": [1.5]}, "suppress_tokens: expected token ids, .* got 1.5"),
        ({"begin_suppress_tokens": [-1]}, "begin_suppress_tokens: expected token ids, .* got -1"),
        ({"begin_suppress_tokens": [2**31]}, "begin_suppress_tokens: .* got 2147483648"),
        ({"bad_words_ids": [5]}, "bad_words_ids: expected a list, got 5"),
        ({"bad_words_ids": [[]]}, "bad_words_ids: expected runs of at least one token"),
        ({"sequence_bias": [[[5]]]}, "sequence_bias: expected pairs of token ids and a bias"),
        ({"sequence_bias": {"5": 1.0}}, "sequence_bias: expected a list, got {'5'"),
        ({"sequence_bias": [[[5], "x"]]}, "sequence_bias: expected a finite number, got 'x'"),
        ({"forced_bos_token_id": [1, 2]}, r"forced_bos_token_id: expected one token, got \(1, 2\)"),
        ({"forced_eos_token_id": 1.0}, "forced_eos_token_id: expected a list, got 1.0"),
        (
            {"forced_eos_token_id": [4, 5], "suppress_tokens": [5, 4, 3]},
            r"forced_eos_token_id: every token in it is in suppress_tokens, too: \(4, 5\)",
        ),
    ],
)
def test_what_a_setting_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Sampling(**settings)
    assert len(str(error.value)) < 200


def test_what_a_setting_can_be():
    """Edges of ranges; NumPy's numbers; lists of a JSON file; a single forced token."""
    edges = Sampling(top_p=0, min_p=1, epsilon_cutoff=1, eta_cutoff=1, typical_p=1, top_k=2**31 - 1)
    assert edges.top_p == 0.0
    got = Sampling(
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        bad_words_ids=[[1, 2], [3]],
        sequence_bias=[[[4, 5], -2]],
        suppress_tokens=np.array([6, 0]),
        forced_bos_token_id=7,
        forced_eos_token_id=[8, 9],
    )
    assert got == Sampling(
        temperature=0.5,
        top_k=3,
        bad_words_ids=((1, 2), (3,)),
        sequence_bias=(((4, 5), -2.0),),
        suppress_tokens=(6, 0),
        forced_bos_token_id=(7,),
        forced_eos_token_id=(8, 9),
    )
    assert hash(got) == hash(dataclasses.replace(got))
    assert type(got.top_k) is int
    assert type(got.temperature) is float


def test_settings_go_over_the_checkpoints_own_one_by_one():
    own = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2, suppress_tokens=(4,))
    assert Sampling().over(own) == own
    assert own.over(Sampling(top_p=0.5, top_k=9)) == dataclasses.replace(own, top_k=9)
    off = Sampling(temperature=0.0, suppress_tokens=()).over(own)
    assert off == dataclasses.replace(own, temperature=0.0, suppress_tokens=())
    assert off.greedy
    assert Sampling().greedy
    assert not own.greedy


@pytest.mark.parametrize(
    "settings",
    [
        {"bad_words_ids": [[1], [3, VOCAB]]},
        {"sequence_bias": [[[VOCAB], 1.0]]},
        {"forced_bos_token_id": VOCAB},
        {"forced_eos_token_id": [1, VOCAB]},
    ],
)
def test_tokens_outside_the_vocabulary(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"{name}: expected tokens in \[0, 64\), got 64"):
        Sampling(**settings).check_vocabulary(VOCAB)
    Sampling(**settings).check_vocabulary(VOCAB + 1)
    Sampling(suppress_tokens=(VOCAB,), begin_suppress_tokens=(VOCAB,)).check_vocabulary(VOCAB)


def read(folder, content, config=None):
    if content is not None:
        (folder / "generation_config.json").write_text(json.dumps(content))
    return read_sampling(folder, config or {}, VOCAB)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "top_k": 0}, {"temperature": 1.0, "top_k": 0}),
        (
            {"do_sample": True, "temperature": 0.2, "top_k": None, "top_p": 0.001},
            {"temperature": 0.2, "top_k": 50, "top_p": 0.001},
        ),
        # As transformers: without do_sample it is greedy, and top_p waits for who samples.
        ({"temperature": 0.9, "top_p": 0.6}, {"top_p": 0.6}),
        ({"do_sample": False, "temperature": 0.0}, {}),
        (
            {"repetition_penalty": 1.05, "bad_words_ids": [[3]], "eos_token_id": 2},
            {"repetition_penalty": 1.05, "bad_words_ids": ((3,),)},
        ),
        ({"num_beams": 1, "max_length": 20, "custom": None, "guidance_scale": 1.0}, {}),
    ],
)
def test_generation_config(tmp_path, content, expected):
    assert read(tmp_path, content) == Sampling(**expected)


def test_config_json_speaks_where_there_is_no_generation_config(tmp_path):
    config = {"repetition_penalty": 1.3, "top_p": None}
    config["text_config"] = {"repetition_penalty": 2.0, "top_p": 0.5, "min_length": 3}
    expected = Sampling(repetition_penalty=1.3, top_p=0.5, min_length=3)
    assert read(tmp_path, None, config) == expected
    assert read(tmp_path, {"top_k": 4}, config) == Sampling(top_k=4)
    assert read_sampling(tmp_path / "none", {"text_config": None}, VOCAB) == Sampling()


def test_what_is_not_honoured_is_named_in_one_warning(tmp_path):
    content = {"num_beams": 4, "stop_strings": ["x" * 99], "top_p": 0.5, "num_beam_groups": 1}
    with pytest.warns(UserWarning, match="not honoured") as caught:
        assert read(tmp_path, content) == Sampling(top_p=0.5)
    (message,) = [str(warning.message) for warning in caught]
    assert "num_beams=4, stop_strings=['xxx" in message
    assert len(message) < 300
    assert "num_beam_groups" not in message
    unknown = {
        "new_rule": 0.5,
        "x\n" * 99: [1],
        "none": None,
        "off": False,
        "transformers_version": "6",
    }
    with pytest.warns(UserWarning, match=r"not honoured: new_rule=0.5, 'x\\nx.*=\[1\]$") as caught:
        assert read(tmp_path, unknown) == Sampling()
    assert len(str(caught[0].message)) < 400
    many = {"num_beams": 2, "penalty_alpha": 0.6, "top_h": 0.5, "token_healing": True}
    many |= {"max_time": 1.0, "guidance_scale": 2, "remove_invalid_values": True}
    with pytest.warns(UserWarning, match="and 2 more$"):
        read(tmp_path, many)


def test_every_setting_of_transformers_is_known():
    """A setting that a new transformers adds fails here, and is named in a warning until then."""
    assert set(vars(GenerationConfig())) <= KNOWN
    groups = [READ, NOT_HONOURED, *CHANGES_NOTHING.values()]
    assert sum(map(len, groups)) == len(KNOWN)


DEFAULTS = GenerationConfig._get_default_generation_params()
CHANGED = {
    **dict.fromkeys(vars(GenerationConfig()), 7),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), 0.5),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), (7,)),
    "bad_words_ids": [[7]],
    "sequence_bias": [[[7], 0.5]],
    "temperature": 0.5,
    "num_assistant_tokens_schedule": "heuristic_transient",
    "cache_implementation": "quantized",
}


@pytest.mark.parametrize("name", sorted(set(vars(GenerationConfig())) - {"do_sample"}))
def test_a_setting_is_honoured_named_or_has_no_effect(tmp_path, name):
    value, default = CHANGED[name], DEFAULTS.get(name)
    without = read(tmp_path, {"do_sample": True})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        changed = read(tmp_path, {"do_sample": True, name: value})
    honoured = changed != without
    named = [str(warning.message) for warning in caught]
    assert honoured == (name in READ)
    assert len(named) == (name in NOT_HONOURED)
    assert all(f"not honoured: {name}=" in message for message in named)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, {"do_sample": True, name: None}) == without
        same = read(tmp_path, {"do_sample": True, name: default})
        harmless = [
            read(tmp_path, {"do_sample": True, name: v}) for v in NOT_HONOURED.get(name, ())
        ]
    assert all(each == without for each in harmless)
    if name not in READ:
        assert same == without


def test_defaults_of_transformers_ask_for_nothing(tmp_path):
    """Files of transformers 4 hold each setting, most of them at the default."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settled = read(tmp_path, DEFAULTS)
    assert settled.greedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"temperature": "warm"}, "temperature: expected a finite number, got 'warm'"),
        ({"do_sample": "yes"}, "do_sample must be true or false, got 'yes'"),
        ({"do_sample": True, "temperature": 0}, "do_sample is true and temperature is 0: expected"),
        ({"do_sample": True, "temperature": False}, "temperature: expected a finite number"),
        ({"do_sample": 1}, "do_sample must be true or false, got 1"),
        ({"bad_words_ids": [[99]]}, r"bad_words_ids: expected tokens in \[0, 64\), got 99"),
    ],
)
def test_errors_name_the_file(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"generation_config.json: {message}"):
        read(tmp_path, content)


def test_who_decides_between_a_call_and_a_checkpoint(model):
    key = jax.random.key(0)
    samples = checkpoint(model, temperature=0.7, top_p=0.9)
    assert settle_sampling(samples, Sampling(), key) == Sampling(temperature=0.7, top_p=0.9)
    cold = settle_sampling(samples, Sampling(temperature=0.1, top_p=1.0), key)
    assert cold == Sampling(temperature=0.1, top_p=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settle_sampling(samples, Sampling(temperature=0.0), None).greedy
    with pytest.warns(UserWarning, match=r"asks for sampling at a temperature of 0\.7.*key="):
        assert settle_sampling(samples, Sampling(), None).greedy
    for asked in (Sampling(top_k=3), Sampling(temperature=1.0)):
        with pytest.raises(ValueError, match="needs a PRNG key"):
            settle_sampling(samples, asked, None)
    with pytest.raises(ValueError, match="top_k, min_p need a temperature above 0"):
        settle_sampling(model, Sampling(top_k=3, min_p=0.1, top_p=1.0), key)
    with pytest.raises(ValueError, match=r"suppress_tokens|forced_eos_token_id.*got 64"):
        settle_sampling(model, Sampling(forced_eos_token_id=64), key)


@pytest.mark.parametrize(
    "key", [jax.random.key(0), jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0)), None]
)
def test_keys_that_are(key):
    checked = argument_checks.check_key(key)
    if key is None:
        assert checked is None
    else:
        assert jnp.issubdtype(checked.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(jax.random.key_data(checked), [0, 0])


@pytest.mark.parametrize(
    "key",
    [0, "key", np.uint32(3), jnp.zeros(2), jax.random.split(jax.random.key(0), 3),
     jax.random.split(jax.random.PRNGKey(0), 3), np.zeros(4, np.uint32)],
)  # fmt: skip
def test_keys_that_are_not(key):
    with pytest.raises(
        ValueError, match=r"key: expected one PRNG key, jax\.random\.key\(seed\), got"
    ):
        argument_checks.check_key(key)


def test_stop_tokens(model):
    assert argument_checks.check_stop_tokens(model, None) == (2,)
    assert argument_checks.check_stop_tokens(model, [np.int32(5), 0, 63]) == (5, 0, 63)
    for bad in (2, "2", [2.0], [True], [-1], [64], {"2": 1}):
        with pytest.raises(ValueError, match=r"stop_tokens: expected token ids in \[0, 64\)"):
            argument_checks.check_stop_tokens(model, bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 3.0}, "max_new_tokens must be an integer of at least 1, got 3.0"),
        ({"max_new_tokens": True}, "max_new_tokens must be an integer of at least 1, got True"),
        ({"max_new_tokens": "3"}, "max_new_tokens must be an integer of at least 1, got '3'"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1, got -1"),
        ({"key": 0}, "key: expected one PRNG key"),
        ({"sampling": {"temperature": 1.0}}, "sampling: expected .*got {'temperature': 1.0}"),
        ({"sampling": None}, "sampling: expected Sampling.*got None"),
        ({"cache": "file"}, "cache: expected KVCache.*got 'file'"),
        (
            {"inputs": {"input_ids": [[1]]}},
            r"inputs: expected Inputs \(models.prepare\), got {'input_ids': ",
        ),
        ({"model": "tiny"}, r"model: expected Model \(models.load\), got 'tiny'"),
        ({"quantize_at": ["image"]}, r"quantize_at must be .prompt. or .image., got \['image'\]"),
        ({"cache_length": 40.0}, "cache_length must be an integer of at least 1, got 40.0"),
        ({"score_map": 3}, "score_map: expected ScoreMap .*got 3"),
        ({"stop_tokens": 2}, "stop_tokens: expected token ids"),
    ],
)
def test_arguments_of_a_wrong_type_are_one_clear_error(model, options, message):
    arguments = {"model": model, "inputs": batch(prompt(3)), "max_new_tokens": 2} | options
    asked = [models.generate, lambda **options: next(models.stream(**options))]
    shared = {"model", "inputs", "max_new_tokens", "quant", "quantize_at", "stop_tokens"}
    if set(options) <= shared:
        asked.append(models.calibrate_scores)
        arguments |= {"quant": "calibquant-1bit"} if "quant" not in options else {}
    for call in asked:
        with pytest.raises(ValueError, match=message) as error:
            call(**arguments)
        assert len(str(error.value)) < 400


def test_the_chunk_of_a_stream_and_the_batches_of_a_calibration(model):
    for chunk in (0, 2.0):
        with pytest.raises(ValueError, match="chunk must be"):
            next(models.stream(model, batch(prompt(3)), max_new_tokens=2, chunk=chunk))
    for inputs in (3, [batch(prompt(3)), 3]):
        with pytest.raises(ValueError, match=r"inputs: expected .*models\.prepare"):
            models.calibrate_scores(model, inputs)
