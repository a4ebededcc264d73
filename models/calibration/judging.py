"""Codes judged by what they do to a model's own answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from models.attached_tables import ModelTables, tables_of_parts
from models.calibration.folder import CalibrationFolder, digest_of
from models.generation.teacher_forcing import EvaluatedModel, compare, parts_of
from models.inputs.batch import Inputs
from models.inputs.on_mesh import place_inputs
from models.model import Model
from models.model_fingerprint import fingerprint
from models.sharding.placing import place_shared, place_tables
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["divergences"]


def divergences(
    model: Model,
    batches: Sequence[Inputs],
    plans: Sequence[tuple[KVQuantConfig, ModelTables]],
    *,
    steps: int,
    kept: CalibrationFolder,
    implementation: str | None = None,
) -> list[float]:
    """Each plan's mean KL of the next token, in nats, along the model's own answers.

    Args:
        model: from `models.load`.
        batches: prompts with images, which are coded before the question is read where they do not
            attend to it.
        plans: codes with their tables, if they have any.
        steps: most tokens of an answer.
        kept: has what was measured before.
        implementation: of attention over the cache and of coding, as for `prefill`.
    """
    if not plans:
        return []
    totals = np.zeros(1 + len(plans))  # positions, then each plan's sum
    for inputs in batches:
        digest = digest_of(fingerprint(model), inputs, steps, plans, implementation)
        judge = functools.partial(_judge, model, inputs, plans, steps, implementation)
        totals += kept.numbers(digest, judge)
    return (totals[1:] / totals[0]).tolist()


def _judge(
    model: Model,
    inputs: Inputs,
    plans: Sequence[tuple[KVQuantConfig, ModelTables]],
    steps: int,
    implementation: str | None,
) -> list[float]:
    """Positions of the answers to one batch, and the KL of each plan summed over them."""
    images, question = (
        None if part is None else place_inputs(model.mesh, part) for part in parts_of(model, inputs)
    )
    assert images is not None
    owner = place_shared(model.mesh, jnp.arange(len(inputs.mask), dtype=jnp.int32))
    room = inputs.prompt_shape.text + steps
    evaluated = EvaluatedModel(model, implementation)
    reading = evaluated.read(images, question, owner, cache_length=room)
    own = evaluated.answer(reading.prompted, steps, steps=steps)
    exact = evaluated.follow(reading.prompted, own.tokens, own.lengths)
    found = [float(exact.lengths.sum())]
    for quant, of_model in plans:
        tables = tables_of_parts(model.config.text, quant, lambda _, own=of_model: own)
        coded = evaluated.read_coded(
            reading,
            place_tables(model.mesh, tables, quant),
            quant=quant,
            quantize_at="prompt" if question is None else "image",
        )
        followed = evaluated.follow(coded, exact.tokens, exact.lengths)
        found.append(float(compare(exact, followed).kl.sum()))
    return found
