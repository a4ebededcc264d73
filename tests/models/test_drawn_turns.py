"""Answers about pictures that a drawn processor prepared, in one turn and in two.

As `test_drawn_prompts.py`, with weights: logits and greedy tokens are those of transformers' model
on the arrays of transformers' processor; a later turn's are those of the whole conversation.
"""

import dataclasses
import random
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import Model
from tests.support.draws.comparing import (
    NEW_TOKENS,
    check_answers,
    check_draws,
    check_logits,
)
from tests.support.draws.drawn import Drawn, torch_model
from tests.support.draws.layouts import write_checkpoint
from tests.support.draws.prompts import SERVED
from tests.support.draws.prompts.batches import draw_groups, draw_prompt, draw_text, real_arrays
from tests.support.draws.prompts.served import Served, served_processor, write_files
from tests.support.draws.prompts.templates import draw_template
from tests.support.draws.texts import frequencies_grow
from tests.support.hf_parity import since
from tests.support.rows import padded_rows

pytestmark = pytest.mark.parity

_AXES = ("qwen", "glm", "paddleocr")
_ONE_TURN = ("paligemma", "mllama")
"""Families whose pictures a later prompt's arrays do not say alone."""


def compare(name: str, case: int, folder: Path) -> None:
    rng = random.Random(f"turns/{name}/{case}")
    served = SERVED[name](rng).with_vocabulary()
    theirs = torch_model(served.content, case)
    write_checkpoint(rng, theirs, folder)
    template = draw_template(rng, served.mark)
    write_files(rng, folder, served, template)
    ours, real = models.load(folder, dtype=jnp.float32), served_processor(folder, served, template)
    groups = draw_groups(rng, served)
    texts = [draw_prompt(rng, served, len(group)) for group in groups]

    def batch(side: str) -> dict[str, np.ndarray]:
        return real_arrays(real, served, texts, groups, padding_side=side)

    drawn = Drawn(served.content, batch, positions=not name.startswith(_AXES))
    check_logits(ours, theirs, drawn, case, rng.choice(("left", "right")))
    check_answers(ours, drawn, case, rng)
    if name in _ONE_TURN or frequencies_grow(served.content["text_config"]):
        return
    first = models.prepare(ours, prompts=texts, images=groups)
    check_later_turn(rng, ours, torch_model(served.content, case), real, served, (first, groups))


def check_later_turn(
    rng: random.Random,
    ours: Model,
    theirs: Any,
    real: Any,
    served: Served,
    asked: tuple[models.Inputs, list[Any]],
) -> None:
    """A turn about more pictures, behind an answer that was cut."""
    import torch

    first, groups = asked
    options: dict[str, Any] = {"quant": "none", "stop_tokens": ()}
    answer = models.generate(ours, first, max_new_tokens=3, **options)
    if np.isin(answer.tokens, [n for n in served.special.values() if n]).any():
        return
    count = rng.choice((0, 1, 2)) * (served.processor != "LlavaOnevisionProcessor")
    more = [draw_groups(rng, dataclasses.replace(served, counts=((count,),)))[0] for _ in groups]
    prompts = [
        models.chat_prompt(ours, draw_text(rng), num_images=count, later_turn=True, finished=False)
        for _ in groups
    ]
    later = models.prepare(ours, prompts=prompts, images=more, later_turn=True)
    got = models.generate(ours, later, max_new_tokens=NEW_TOKENS, cache=answer.cache, **options)

    parts = [_rows(first), np.asarray(answer.tokens).tolist(), _rows(later)]
    pictures = [before + behind for before, behind in zip(groups, more, strict=True)]
    marks = [served.mark * len(group) + "x" for group in pictures]
    arrays = real_arrays(real, served, marks, pictures)
    for name in set(arrays) & {"token_type_ids", "mm_token_type_ids"}:
        arrays[name] = np.stack([arrays[name], arrays["input_ids"]])
    rows = padded_rows(*([*map(list, row)] for row in zip(*parts, strict=True)))
    for name in set(arrays) & {"token_type_ids", "mm_token_type_ids"}:
        types, ids = arrays[name]
        arrays[name] = np.isin(rows["input_ids"], ids[types == 1]).astype(np.int64)
    with torch.no_grad():
        expected = theirs.generate(
            **{name: torch.tensor(np.asarray(x)) for name, x in (arrays | rows).items()},
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, rows["input_ids"].shape[1] :].numpy()
    np.testing.assert_array_equal(got.tokens, expected)


def _rows(inputs: models.Inputs) -> list[list[int]]:
    """The tokens of each row without padding."""
    pairs = zip(np.asarray(inputs.input_ids), np.asarray(inputs.mask), strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


@since("5.24", "processors of earlier versions give other arrays")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SERVED)
def test_drawn_turns(name, cases, tmp_path):
    check_draws(compare, name, cases(1), tmp_path)
