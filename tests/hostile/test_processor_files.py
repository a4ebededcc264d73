"""Files of a processor, and chat templates, with anything in them: inputs or one clear error."""

import dataclasses
import json
import math
import random
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.prompts import chat_template
from tests.models.hf_files import random_weights, write_checkpoint, write_processor

FILES = (
    "preprocessor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "processor_config.json",
)
PICTURE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] | trim }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PIECES = (
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "(",
    ")",
    "|",
    "'",
    "1/0",
    "m.x.y",
    "9**9**9",
    "for",
    "\0",
    "é",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model, and the files of its processor, with every setting written out."""
    folder = write_processor(tmp_path_factory.mktemp("whole"))
    model = models.load(write_checkpoint(folder, random_weights()), dtype=jnp.float32)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | {
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    file.write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return model, folder


def hostile_value(rng: random.Random):
    numbers = (0, -1, 1, 2, 3.5, 1e308, 2**31, 2**64, 10**400, math.nan, math.inf, -math.inf)
    nested = []
    for _ in range(rng.choice((1, 50, 900))):
        nested = [nested]
    others = (
        None,
        True,
        False,
        "",
        "x",
        "true",
        "<s>",
        "x" * 5000,
        "\ud800",
        [],
        {},
        [None],
        nested,
    )
    return rng.choice((*numbers, *others, [0.5, 0.5], [0, 0, 0], {"content": "x"}, {"height": -1}))


def mutate(rng: random.Random, node):
    """Changes one value somewhere inside a JSON value, more often a leaf than the root."""
    if isinstance(node, dict) and node and rng.random() < 0.9:
        key = rng.choice(sorted(node))
        if rng.random() < 0.15:
            return {name: value for name, value in node.items() if name != key}
        return node | {key: mutate(rng, node[key])}
    if isinstance(node, list) and node and rng.random() < 0.8:
        index = rng.randrange(len(node))
        return [*node[:index], mutate(rng, node[index]), *node[index + 1 :]]
    return hostile_value(rng)


def changed_text(rng: random.Random, text: str) -> str:
    if rng.random() < 0.85:
        return json.dumps(mutate(rng, json.loads(text)))
    start = rng.randrange(len(text))
    return text[:start] + rng.choice(("", "\0", "}", "[" * 5000, text)) + text[start + 1 :]


@pytest.mark.filterwarnings("ignore")
def test_files_with_one_value_changed(cases, one_clear_error, whole, tmp_path):
    model, folder = whole
    made = 0
    for case in cases(60):
        rng = random.Random(f"processor files/{case}")
        copy = tmp_path / str(case)
        copy.mkdir()
        for file in folder.glob("*[!s]*"):
            if file.suffix != ".safetensors":
                shutil.copy(file, copy)
        name = rng.choice(FILES)
        (copy / name).write_text(changed_text(rng, (copy / name).read_text()))
        other = dataclasses.replace(model, source=str(copy))
        try:
            prompt = models.chat_prompt(other, "what is")
            inputs = models.prepare(other, prompts=[prompt, "this"], images=[PICTURE, None])
        except Exception as error:
            one_clear_error(error)
            continue
        made += 1
        assert inputs.pixel_values.shape == (1, 3, 28, 28)
        assert bool(jnp.isfinite(inputs.pixel_values).all())
        assert int(inputs.visual_mask.sum()) == 4
    assert made >= len(cases(60)) // 12


@pytest.mark.parametrize("name", sorted(set(FILES) - {"tokenizer.json"}))
def test_a_setting_given_twice_is_named(whole, tmp_path, name):
    model, folder = whole
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / name
    setting = next(iter(json.loads(file.read_text())))
    file.write_text(f'{file.read_text().rstrip()[:-1]}, "{setting}": 3}}')
    with pytest.raises(ValueError, match=f"{name} is not valid JSON: '{setting}' is given twice"):
        models.chat_prompt(dataclasses.replace(model, source=str(file.parent)), "what is")


def test_a_folder_whose_name_is_no_text_is_named(one_clear_error, whole, tmp_path):
    model, folder = whole
    copy = shutil.copytree(folder, tmp_path / "\udcfe")
    with pytest.raises(ValueError, match="expected a folder whose name is text in UTF-8") as error:
        models.chat_prompt(dataclasses.replace(model, source=str(copy)), "what is")
    one_clear_error(error.value)


def test_templates_with_pieces_changed(cases, one_clear_error, whole, tmp_path, monkeypatch):
    model, folder = whole
    monkeypatch.setattr(chat_template, "TIME_LIMIT", 1.0)
    for case in cases(40):
        rng = random.Random(f"templates/{case}")
        copy = tmp_path / str(case)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
        template = TEMPLATE
        for _ in range(rng.choice((1, 1, 3))):
            start = rng.randrange(len(template))
            end = start + rng.choice((0, 1, 10))
            template = template[:start] + rng.choice(PIECES) + template[end:]
        (copy / "chat_template.jinja").write_text(template)
        other = dataclasses.replace(model, source=str(copy))
        try:
            prompt = models.chat_prompt(other, "what is", later_turn=rng.random() < 0.3)
        except Exception as error:
            one_clear_error(error)
            continue
        assert prompt.count("<image>") == 1
        assert "what is" in prompt
