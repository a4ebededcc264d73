"""Models drawn by a number against transformers' own: configurations that no test was written for.

A case draws a tiny configuration of its family, random weights, a layout of files, and a batch with
unlike numbers of pictures. `pytest -m parity tests/models/test_drawn_models.py --cases 100` runs
many; a failing one is found again by its number (`-k llava --first-case 37`).
"""

import dataclasses
import random
from pathlib import Path

import jax.numpy as jnp
import pytest

import models
from models.families.registry import MODEL_TYPES
from tests.models.test_config_fields import TOWERS
from tests.support.draws import DRAWS
from tests.support.draws.comparing import check_answers, check_draws, check_logits
from tests.support.draws.drawn import torch_model
from tests.support.draws.layouts import write_checkpoint
from tests.support.hf_parity import since

pytestmark = pytest.mark.parity

ONE_VALUE = {
    *("model_type", "text_config", "vision_config", "num_channels", "in_channels"),
    *("use_absolute_position_embeddings", "use_bidirectional_attention"),
    # In some classes.
    *("attn_logit_softcapping", "final_logit_softcapping", "vision_feature_select_strategy"),
}
"""Fields of which ports take one value alone."""


def compare(name: str, case: int, folder: Path) -> None:
    rng = random.Random(f"parity/{name}/{case}")
    drawn = DRAWS[name](rng)
    theirs = torch_model(drawn.content, case)
    write_checkpoint(rng, theirs, folder)
    ours = models.load(folder, dtype=jnp.float32)
    check_logits(ours, theirs, drawn, case, rng.choice(("left", "right")))
    check_answers(ours, drawn, case, rng)


@since("5.24", "clips, soft-caps and time steps of several families are computed otherwise")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DRAWS)
def test_drawn_models(name, cases, tmp_path):
    check_draws(compare, name, cases(1), tmp_path)


def test_every_family_and_every_field_that_a_port_reads_is_drawn():
    import transformers

    assert set(MODEL_TYPES) <= set(DRAWS)
    drawn: dict[str, set[str]] = {}
    for name, draw in DRAWS.items():
        for case in range(60):
            whole = draw(random.Random(f"fields/{name}/{case}")).content
            drawn.setdefault(whole["model_type"], set()).update(whole)
            for part in ("text", "vision"):
                tower = whole[f"{part}_config"]
                kind = tower.get("model_type", f"{whole['model_type']}_{part}")
                drawn.setdefault(kind, set()).update(tower)
    for name, schema in TOWERS.items():
        theirs = getattr(transformers, name)
        kind = theirs.model_type.replace("mllama_vision_model", "mllama_vision")
        kind = kind.replace("mllama_text_model", "mllama_text")
        common, own = ({f.name for f in dataclasses.fields(each)} for each in (theirs, schema))
        assert (common & own) - ONE_VALUE <= drawn[kind], name
