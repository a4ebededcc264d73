"""Prompts and pictures of drawn processors, prepared here and by transformers' own classes.

A case draws a configuration, the processor's files with odd settings, and a batch of prompts with
unlike numbers of pictures. `pytest -m parity tests/models/test_drawn_prompts.py --cases 100` runs
many; a failing one is found again by its number (`-k llava --first-case 37`).
"""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import models
from models import Model
from models.families.registry import family_of
from models.layers.linear import Maker
from models.loading import read_config
from tests.support.draws import DRAWS
from tests.support.draws.comparing import check_draws
from tests.support.draws.prompts import SERVED
from tests.support.draws.prompts.batches import draw_groups, draw_prompt, draw_text, real_arrays
from tests.support.draws.prompts.served import Served, served_processor, write_files
from tests.support.draws.prompts.templates import draw_template
from tests.support.hf_parity import since

pytestmark = pytest.mark.parity


def stand_in(folder: Path) -> Model:
    """A model without weights, which `prepare` does not look at."""
    config = read_config(folder)
    module = nnx.eval_shape(
        lambda: family_of(config.model_type).build(config, Maker.create(nnx.Rngs(0)))
    )
    return dataclasses.replace(Model.from_module(module), source=str(folder))


def assert_same(got: models.Inputs, expected: models.Inputs) -> None:
    for field in dataclasses.fields(models.Inputs):
        if field.name != "bos_token_id":
            pair = (getattr(each, field.name) for each in (got, expected))
            jax.tree.map(np.testing.assert_array_equal, *pair)


def compare(name: str, case: int, folder: Path) -> None:
    rng = random.Random(f"prompts/{name}/{case}")
    served = SERVED[name](rng).with_vocabulary()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(served.content))
    template = draw_template(rng, served.mark)
    write_files(rng, folder, served, template)
    ours, real = stand_in(folder), served_processor(folder, served, template)
    groups = draw_groups(rng, served)
    texts = [draw_prompt(rng, served, len(group)) for group in groups]
    expected = real_arrays(real, served, texts, groups)
    got = models.prepare(ours, prompts=texts, images=groups)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.mask, expected["attention_mask"])
    assert_same(got, models.prepare(ours, **expected))
    if served.leading:
        return
    check_chat(rng, ours, real, served)


def check_chat(rng: random.Random, ours: Model, real: Any, served: Served) -> None:
    """Both turns of a chat have the template's text; the later one's tokens end the whole's."""
    first, later = (draw_groups(rng, served)[0] for _ in range(2))
    if served.processor == "LlavaOnevisionProcessor" and first:
        later = []  # several pictures of one text have fewer tiles than one
    question, again = draw_text(rng), draw_text(rng)
    answer = "It is" + draw_text(rng) + "."
    part = {"type": "image"}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [*[part] * len(first), {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        {"role": "user", "content": [*[part] * len(later), {"type": "text", "text": again}]},
    ]
    render = {"add_generation_prompt": True, "tokenize": False}
    text = models.chat_prompt(ours, question, num_images=len(first))
    assert text == real.apply_chat_template(turns[:1], **render)
    whole = real.apply_chat_template(turns, **render)
    behind = models.chat_prompt(ours, again, num_images=len(later), later_turn=True)
    assert whole.endswith(behind)
    assert whole.startswith(text)
    # Some templates write a space before an answer that the model is left to write.
    given = whole[len(text) : len(whole) - len(behind)].removeprefix(" ")
    stop = given.removeprefix(answer)
    assert stop in ("", real.tokenizer.eos_token)
    bos = real.tokenizer.bos_token
    written = {"add_special_tokens": False} if bos and whole.startswith(bos) else {}
    expected = real_arrays(real, served, [whole], [first + later], **written)
    before = models.prepare(ours, prompts=text, images=[first])
    after = models.prepare(ours, prompts=behind, images=[later], later_turn=True)
    ids = expected["input_ids"][0]
    np.testing.assert_array_equal(ids[: before.input_ids.shape[1]], before.input_ids[0])
    if stop:
        np.testing.assert_array_equal(ids[-after.input_ids.shape[1] :], after.input_ids[0])


def test_every_family_is_drawn():
    assert set(SERVED) == set(DRAWS)


@since("5.24", "processors of earlier versions give other arrays")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SERVED)
def test_drawn_prompts(name, cases, tmp_path):
    check_draws(compare, name, cases(2), tmp_path)
