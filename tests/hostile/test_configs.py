"""Settings files mutated by schema and by bytes: a model that answers, or one clear error."""

import copy
import dataclasses
import json
import math
import random
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import models
from models.checkpoints.hf_rope import RopeSettings, read_rope
from models.families.llava.config import LlavaSettings
from models.prompts.arrays import inputs_from_arrays
from models.text.registry import TEXT_SETTINGS
from models.vision.settings import ClipVisionSettings
from tests.models.hf_files import config_json, random_weights, write_checkpoint

SECONDS, MEGABYTES = 30, 2000  # for one case, and for all of them

# A field of the base, and the schema whose fields are mutated there.
PLACES = (
    ("config.json", (), LlavaSettings),
    ("config.json", ("vision_config",), ClipVisionSettings),
    ("config.json", ("text_config",), TEXT_SETTINGS["llama"]),
    ("config.json", ("text_config",), TEXT_SETTINGS["ministral"]),
    ("config.json", ("text_config", "rope_parameters"), RopeSettings),
)
HOSTILE = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31 - 1,
    2**31,
    -(2**63),
    10**300,
    10**400,
    0.0,
    -0.5,
    1e-45,
    0.5,
    1.0,
    1e38,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "silu",
    "1",
    "x" * 10_000,
    "\ud800\n",
    [],
    [0],
    [1.0, 1.0],
    [math.nan, 1.0],
    [[]],
    ["full_attention", "sliding_attention"],
    ["full_attention"] * 5000,
    {},
    {"a": {"b": [1]}},
    {str(i): "y" * 1000 for i in range(100)},
)
ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def rope(rng):
    """Rotary settings that are valid for every kind that a mutation may choose."""
    return {
        "rope_type": rng.choice(ROPE_KINDS),
        "factor": rng.choice((1, 1.5, 8.0)),
        "rope_theta": rng.choice((5000.0, 10000)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 8.0],
    }


def mutated_files(rng):
    """A config.json and perhaps a generation_config.json, most of them with hostile values."""
    kind = rng.choice(["llama", rng.choice(list(TEXT_SETTINGS))])  # the weights are of the first
    files = {"config.json": config_json(text={"model_type": kind})}
    if rng.random() < 0.5:
        files["config.json"]["text_config"]["rope_parameters"] = rope(rng)
    if rng.random() < 0.2:
        files["generation_config.json"] = {"eos_token_id": rng.choice(HOSTILE)}
    for _ in range(rng.randrange(3)):
        file, path, schema = rng.choice(PLACES)
        at = files[file]
        for name in path:
            at = at.setdefault(name, {}) if isinstance(at, dict) else None
        if isinstance(at, dict):
            name = rng.choice([field.name for field in dataclasses.fields(schema)])
            at[name] = copy.deepcopy(rng.choice(HOSTILE))
    return {name: json.dumps(content).encode() for name, content in files.items()}


def mutated_bytes(rng, content):
    """The content with a few bytes changed, or another structure around it."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content))
        match rng.randrange(6):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                del content[at:]
            case 2:
                content[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 20)))
            case 3:
                content[at:at] = content[: rng.randrange(len(content))]
            case 4:
                content[at:at] = rng.choice((b"[", b'{"a":')) * rng.choice((1, 100_000))
            case 5:
                content[:0] = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"[", b" "))
        if not content:
            content = bytearray(b" ")
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hostile"), random_weights())


@pytest.fixture(scope="module")
def known():
    """Settings whose model is known to answer."""
    return set()


def check_answer(model, known):
    if model.config in known:
        return
    known.add(model.config)
    image = model.config.image_token_id
    first, *rest = (token for token in (1, 5, 6, 7) if token != image)
    if image < 20:
        size = model.config.vision.image_size
        ids = [[first, *[image] * model.config.vision.num_features, *rest]]
        pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    else:
        ids, pixels = [[first, *rest]], None
    logits = models.forward(model, inputs_from_arrays(model.config, ids, None, pixels))
    assert bool(jnp.isfinite(logits).all()), model.config


def check_one_line(error):
    assert str(error).isprintable(), repr(error)


def load_or_error(folder, one_clear_error, known):
    start = time.monotonic()
    try:
        model = models.load(folder, dtype=jnp.float32)
    except Exception as error:
        one_clear_error(error)
        check_one_line(error)
        return False
    finally:
        seconds = time.monotonic() - start
        assert seconds < SECONDS, f"{seconds} seconds"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params))
    check_answer(model, known)
    return True


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Vocabularies shrink below the stop tokens, which is a warning.
@pytest.mark.filterwarnings("ignore:.*lies beyond the vocabulary")
def test_settings_mutated_by_schema(folder, cases, one_clear_error, known):
    before, loaded = peak_megabytes(), 0
    for case in cases(24):
        for name, content in mutated_files(random.Random(f"schema/{case}")).items():
            (folder / name).write_bytes(content)
        loaded += load_or_error(folder, one_clear_error, known)
        (folder / "generation_config.json").unlink(missing_ok=True)
    assert peak_megabytes() < before + MEGABYTES
    assert 0 < loaded < len(cases(24))


@pytest.mark.filterwarnings("ignore:.*lies beyond the vocabulary")
def test_settings_mutated_by_bytes(folder, cases, one_clear_error, known):
    loaded = 0
    for case in cases(60):
        rng = random.Random(f"bytes/{case}")
        (folder / "config.json").write_text(json.dumps(config_json()))
        file = rng.choice(("config.json", "config.json", "generation_config.json"))
        base = config_json() if file == "config.json" else {"eos_token_id": [2, 3], "top_p": 0.5}
        (folder / file).write_bytes(mutated_bytes(rng, json.dumps(base).encode()))
        loaded += load_or_error(folder, one_clear_error, known)
        (folder / "generation_config.json").unlink(missing_ok=True)
    assert 0 < loaded < len(cases(60))


def text_config(rng):
    """A valid text tower with its rotary settings in one of the ways that files have."""
    kind = rng.choice(ROPE_KINDS)
    given = {rng.choice(["type", "rope_type"]): kind} if rng.random() < 0.9 else {}
    if kind in ("linear", "dynamic", "yarn", "llama3") or rng.random() < 0.3:
        given["factor"] = rng.choice([2, 4.0, 8.5])
    if kind == "llama3":
        given |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        given |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    if rng.random() < 0.4:
        given["rope_theta"] = rng.choice([500.0, 1e6])
    if rng.random() < 0.4:
        given["original_max_position_embeddings"] = rng.choice([128, 256])
    text = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 1024}
    if rng.random() < 0.9:
        text[rng.choice(["rope_scaling", "rope_parameters"])] = given
    if rng.random() < 0.5:
        text["rope_theta"] = rng.choice([700.0, 2e6])
    if rng.random() < 0.2:
        text["original_max_position_embeddings"] = rng.choice([64, 512])
    return text


def test_rotary_settings_are_read_as_in_transformers(cases):
    """The same kind, theta, factor and length, wherever a file says them."""
    for case in cases(60):
        text = text_config(random.Random(f"rope/{case}"))
        theirs = transformers.LlamaConfig(**copy.deepcopy(text))
        theirs.standardize_rope_params()  # as its model does once more
        expected = theirs.rope_parameters
        got = read_rope(TEXT_SETTINGS["llama"].read(text), 16, "text_config")
        assert got.kind == expected["rope_type"], case
        assert got.theta == expected["rope_theta"], case
        assert got.factor == expected.get("factor"), case
        if got.kind in ("yarn", "llama3", "longrope"):
            assert got.pretraining_length == expected["original_max_position_embeddings"], case
