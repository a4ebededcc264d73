"""Models drawn by a number against transformers' own: configurations that no test was written for.

A case draws a tiny configuration of its family, random weights, a layout of files, and a batch with
unlike numbers of pictures. `pytest -m parity tests/models/test_drawn_models.py --cases 100` runs
many; a failing one is found again by its number (`-k llava --first-case 37`).
"""

import dataclasses
import gc
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import Model
from models.families.registry import MODEL_TYPES
from tests.models.test_config_fields import TOWERS
from tests.support.draws import DRAWS
from tests.support.draws.drawn import Drawn, torch_model
from tests.support.draws.layouts import write_checkpoint
from tests.support.hf_parity import since

pytestmark = pytest.mark.parity

TOLERANCE, NEW_TOKENS = 1e-4, 6
ONE_VALUE = {
    *("model_type", "text_config", "vision_config", "num_channels", "in_channels"),
    *("use_absolute_position_embeddings", "use_bidirectional_attention"),
    # In some classes.
    *("attn_logit_softcapping", "final_logit_softcapping", "vision_feature_select_strategy"),
}
"""Fields of which ports take one value alone."""


def logits_of(theirs: Any, drawn: Drawn, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """transformers' logits; padding does not count as positions."""
    import torch

    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    if drawn.positions:
        tensors["position_ids"] = (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    floats = {name: x.to(theirs.dtype) for name, x in tensors.items() if x.is_floating_point()}
    with torch.no_grad():
        return theirs(**tensors | floats).logits.numpy()


def rounding(drawn: Drawn, case: int, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """transformers' logits in float64; its float32 ones differ where a draw is ill-conditioned."""
    twin = torch_model(drawn.content, case).double()
    if not drawn.content["text_config"].get("attn_logit_softcapping"):
        # The other implementation makes NaN of rows that see nothing.
        twin.set_attn_implementation("sdpa")
    return logits_of(twin, drawn, arrays)


def check_logits(ours: Model, theirs: Any, drawn: Drawn, case: int, side: str) -> None:
    arrays = drawn.arrays(side, theirs)
    inputs = models.prepare(ours, **arrays)
    mask = np.asarray(inputs.mask)
    expected = logits_of(theirs, drawn, arrays)[mask]
    got = np.asarray(models.forward(ours, inputs))[mask]
    assert np.abs(expected).max() > 0.5
    error = np.abs(got - expected).max()
    if not error < TOLERANCE:
        exact = rounding(drawn, case, arrays)[mask]
        own = np.abs(expected - exact).max()
        assert np.abs(got - exact).max() < max(TOLERANCE, 2 * own), (
            f"logits differ by {error:.1e}; padding on the {side}"
        )


def check_answers(ours: Model, drawn: Drawn, case: int, rng: random.Random) -> None:
    """Greedy tokens are equal, in one way of coding; an answer in 1 bit is one."""
    import torch

    theirs = torch_model(drawn.content, case)  # dynamic RoPE remembers lengths
    arrays = drawn.arrays("left", theirs)
    with torch.no_grad():
        expected = theirs.generate(
            **{name: torch.tensor(value) for name, value in arrays.items()},
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, arrays["input_ids"].shape[1] :].numpy()
    inputs = models.prepare(ours, **arrays)
    times = ("prompt",) if ours.visual_depends_on_question else ("prompt", "image")
    options: dict[str, Any] = {"stop_tokens": (), "quantize_at": rng.choice(times)}
    answer = models.generate(ours, inputs, quant="none", max_new_tokens=NEW_TOKENS, **options)
    np.testing.assert_array_equal(answer.tokens, expected)
    if rng.random() < 0.3:
        answer = models.generate(ours, inputs, quant="vkq-1bit", max_new_tokens=2, **options)
        assert np.asarray(answer.lengths).tolist() == [2] * len(expected)


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
    failed = []
    for case in cases(1):
        try:
            compare(name, case, tmp_path / str(case))
        except Exception as error:
            error.add_note(f"case {case} of {name}")
            failed.append(error)
        if case % 20 == 19:
            jax.clear_caches()
            gc.collect()
    if failed:
        raise ExceptionGroup(f"{len(failed)} draws of {name}", failed)


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
