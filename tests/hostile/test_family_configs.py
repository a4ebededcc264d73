"""config.json of every family with hostile fields anywhere: a model can be built, or an error."""

import copy
import json
import random
import time

import jax
import pytest
from flax import nnx

import models
from models.families.registry import family_of
from models.layers.linear import Maker
from tests.hostile.test_configs import HOSTILE, check_one_line
from tests.models.families import (
    test_aya_vision,
    test_gemma4,
    test_gemma4_unified,
    test_glm4v,
    test_internvl,
    test_mllama,
)
from tests.support import qwen_vl
from tests.support.clip_cases import CASES

SECONDS = 20  # for one case

LISTS = (
    ["linear_attention", "full_attention"] * 3,
    ["full_attention", "linear_attention", "sliding_attention", "chunked_attention", "x"],
    [-1],
    [99],
    [1, 1],
    [0, 1, 2, 3, 4, 5, 6],
    [1.5],
    [[1, 1], [1, 2]],
    [[1, 1, 1]],
    [0, 0, 0],
)


def moe(text):
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    return text | {"model_type": "qwen3_moe", **experts}


def configs():
    """A config.json of each family, by a name."""
    internvl = test_internvl.config_json()
    return {
        "mllama": test_mllama.config_json(),
        "aya_vision": test_aya_vision.config_json(),
        "glm4v": test_glm4v.config_json(),
        "glm46v": test_glm4v.config_json("glm46v"),
        "glm4v_moe": test_glm4v.config_json("glm4v_moe", text=test_glm4v.EXPERTS),
        "gemma4": test_gemma4.config_json(),
        "gemma4_unified": test_gemma4_unified.config_json(),
        "internvl, experts": internvl | {"text_config": moe(internvl["text_config"])},
        "qwen3_vl_moe": qwen_vl.config_json("qwen3_vl_moe"),
        "qwen3_5": qwen_vl.config_json("qwen3_5"),
        "qwen3_5_moe": qwen_vl.config_json("qwen3_5_moe"),
        **{title: case.config for title, case in CASES.items()},
    }


def places(tree):
    """Every object of a JSON tree with each of its names."""
    for name, value in tree.items():
        yield tree, name
        if isinstance(value, dict):
            yield from places(value)


def near(value, rng):
    """A value like one that a real file has, which may contradict the other fields."""
    match value:
        case bool():
            return not value
        case int() | float():
            return rng.choice((value + 1, value - 1, 2 * value, value // 2, -value, float(value)))
        case list():
            return rng.choice((value[::-1], value[1:], value * 2, [], value[:1] * len(value)))
    return rng.choice(HOSTILE)


def mutated(config, rng):
    config = copy.deepcopy(config)
    for _ in range(rng.choice((1, 1, 2))):
        at, name = rng.choice(list(places(config)))
        match rng.randrange(5):
            case 0:
                at[name] = rng.choice(HOSTILE)
            case 1:
                del at[name]
            case 2:
                lists = [place for place in places(config) if isinstance(place[0][place[1]], list)]
                at, name = rng.choice(lists) if lists else (at, name)
                at[name] = rng.choice(LISTS)
            case _:
                at[name] = near(at[name], rng)
        if not config:
            break
    return config


# Vocabularies shrink below the stop tokens, which is a warning.
@pytest.mark.filterwarnings("ignore:.*lies beyond the vocabulary")
def test_hostile_fields_of_every_family(cases, one_clear_error, tmp_path):
    known, built = configs(), 0
    for case in cases(40):
        rng = random.Random(f"families/{case}")
        content = mutated(known[rng.choice(list(known))], rng)
        (tmp_path / "config.json").write_text(json.dumps(content))
        start = time.monotonic()
        try:
            config = models.read_config(tmp_path)
        except Exception as error:
            one_clear_error(error)
            check_one_line(error)
            continue
        finally:
            assert time.monotonic() - start < SECONDS
        text = config.text
        assert sorted(n for layers in text.stacks.values() for n in layers) == [
            *range(text.num_hidden_layers)
        ]
        if text.num_hidden_layers > 16 or text.vocab_size > 10**5:
            continue  # the files of a checkpoint are compared with such sizes first
        module = nnx.eval_shape(
            lambda config=config: family_of(config.model_type).build(
                config, Maker.create(nnx.Rngs(0))
            )
        )
        shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(module))]
        assert all(size > 0 for shape in shapes for size in shape), case
        built += 1
    assert len(cases(40)) // 16 <= built < len(cases(40))


@pytest.mark.parametrize("name", sorted(configs()))
def test_the_files_that_are_mutated_are_read(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(configs()[name]))
    assert models.read_config(tmp_path).text.num_hidden_layers > 0


@pytest.mark.parametrize("name", sorted(configs()))
def test_decoders_without_an_object_of_their_own_are_read_or_refused(name, tmp_path):
    """transformers 5 takes a default decoder for most of these files, whatever they say."""
    file, nested = tmp_path / "config.json", configs()[name]
    flat = nested["text_config"] | {x: y for x, y in nested.items() if x != "text_config"}
    if nested["model_type"] in ("qwen2_vl", "qwen2_5_vl", "paddleocr_vl"):
        file.write_text(json.dumps(nested))
        expected = models.read_config(tmp_path)
        file.write_text(json.dumps(flat))
        assert models.read_config(tmp_path) == expected
        return
    file.write_text(json.dumps(flat))
    with pytest.raises(ValueError, match="text_config is missing: expected an object"):
        models.read_config(tmp_path)
