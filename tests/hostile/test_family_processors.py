"""Files of every family's processor with anything in them: inputs, or one clear error."""

import json
import random

import jax
import numpy as np
import pytest

import models
from tests.hostile.test_family_configs import near, places
from tests.hostile.test_processor_files import changed_text
from tests.models.test_drawn_prompts import stand_in
from tests.support.draws.prompts import SERVED
from tests.support.draws.prompts.batches import draw_groups, draw_prompt
from tests.support.draws.prompts.served import write_files
from tests.support.draws.prompts.templates import draw_template

FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "config.json",
)


def changed(rng, text):
    """A file with one value near a good one, or anything."""
    tree = json.loads(text)
    # A vocabulary has thousands of places.
    found = [(at, name) for at, name in places(tree) if len(at) < 50]
    if not found or rng.random() < 0.4:
        return changed_text(rng, text)
    at, name = rng.choice(found)
    at[name] = near(at[name], rng)
    return json.dumps(tree)


@pytest.mark.parity  # processors of clips want torch
@pytest.mark.filterwarnings("ignore")
def test_files_of_every_family_with_one_value_changed(cases, one_clear_error, tmp_path):
    made = 0
    for case in cases(24):
        rng = random.Random(f"family processors/{case}")
        served = SERVED[rng.choice(sorted(SERVED))](rng).with_vocabulary()
        folder = tmp_path / str(case)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(served.content))
        write_files(rng, folder, served, draw_template(rng, served.mark))
        groups = draw_groups(rng, served)
        texts = [draw_prompt(rng, served, len(group)) for group in groups]
        file = rng.choice([folder / name for name in FILES if (folder / name).exists()])
        file.write_text(changed(rng, file.read_text()))
        try:
            model = stand_in(folder)
            models.chat_prompt(model, "what is")
            inputs = models.prepare(model, prompts=texts, images=groups)
        except Exception as error:
            one_clear_error(error)
            continue
        made += 1
        for leaf in jax.tree.leaves((inputs.pixel_values, inputs.vision_layout)):
            assert np.isfinite(leaf).all()
    assert made >= len(cases(24)) // 6
