"""Other spellings of drawn config.json files mean what transformers reads in them.

A case changes a drawn file as files of the hub differ: names of transformers 4, fields left out or
null, numbers without a fraction. transformers reads it and states everything that it means; this
library makes the same of both. `--cases 500` draws more.
"""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

import models
from models.families.base import ModelConfig
from tests.support.draws import DRAWS
from tests.support.draws.comparing import check_draws
from tests.support.draws.spellings import respelled

pytestmark = pytest.mark.parity


def reading(folder: Path, content: dict[str, Any]) -> ModelConfig | None:
    """The settings of a file; None where it is refused. What pads prompts, the file itself says."""
    (folder / "config.json").write_text(json.dumps(content))
    try:
        found = models.read_config(folder)
    except (ValueError, NotImplementedError):
        return None
    return dataclasses.replace(found, pad_token_ids=())


def compare(name: str, case: int, folder: Path) -> None:
    from transformers import AutoConfig

    folder.mkdir()
    rng = random.Random(f"spellings/{name}/{case}")
    content = respelled(rng, json.loads(json.dumps(DRAWS[name](rng).content)))
    (folder / "config.json").write_text(json.dumps(content))
    try:
        theirs = AutoConfig.from_pretrained(folder)
    except Exception:
        return  # a file that transformers does not read either
    whole = json.loads(theirs.to_json_string(use_diff=False))
    assert reading(folder, content) == reading(folder, whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DRAWS)
def test_drawn_spellings(name, cases, tmp_path):
    check_draws(compare, name, cases(10), tmp_path)
