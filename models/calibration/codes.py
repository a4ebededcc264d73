"""Calibration of codes: tables from sample pictures and prompts, and the plan that does best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models.calibration.fitting import fit_codes
from models.calibration.samples import CodeSamples, sample_codes
from models.checkpoints.fingerprint import fingerprint
from models.generation import teacher_forcing
from models.inputs.batch import Inputs
from models.inputs.split import split_after_images
from models.model import Model
from vkq_jax.calibrated import CalibratedCodes, CalibratedPreset
from vkq_jax.code_tables import CodeTables
from vkq_jax.config import KVQuantConfig
from vkq_jax.presets import calibrated_presets

__all__ = ["calibrate_codes"]

_JUDGES = 32  # prompts that plans are compared on
MOST_TOKENS = 16384  # of each head: more change the centroids little


def calibrate_codes(
    model: Model,
    inputs: Iterable[Inputs],
    *,
    presets: Sequence[str] | None = None,
    tokens: int = 256,
    max_new_tokens: int = 16,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda prompts: None,
    on_preset: Callable[[str, Sequence[float]], None] = lambda name, divergence: None,
) -> CalibratedCodes:
    """Tables of a model's codes, from its keys, values and queries on sample prompts.

    Each batch is answered greedily at full precision. The first 32 prompts compare the plans of a
    preset; if there are more, only those are fitted to. Not for use inside jit.

    Args:
        model: from `models.load`.
        inputs: batches of sample prompts, each with images. From a few dozen pictures on tables
            are good, more make them better: learned dictionaries fit themselves to few.
        presets: names of those to calibrate; all that calibration improves by default.
        tokens: visual tokens to keep of each prompt, for each head.
        max_new_tokens: most tokens of each answer.
        seed: of what is drawn at random.
        on_batch: is told the number of prompts of each batch that is done.
        on_preset: is told each preset that is done and the KL of its plans, of which the least is
            taken, see `vkq_jax.presets.calibrated_presets`.

    Raises:
        ValueError: an unknown preset, no prompts, or a prompt without an image.
    """
    names = list(calibrated_presets) if presets is None else list(presets)
    for name in names:
        if name not in calibrated_presets:
            known = ", ".join(calibrated_presets)
            raise ValueError(f"presets: expected some of {known}, got {name!r}")
    key, judges, samples = jax.random.key(seed), [], []
    for number, batch in enumerate(inputs):
        if not bool((batch.visual_mask & batch.mask).any(-1).all()):
            raise ValueError("every sample prompt needs an image to calibrate with")
        if not batch.prompt_shape.suffix:
            raise ValueError("expected sample prompts with a question behind the image, got none")
        if sum(len(x.mask) for x in judges) < _JUDGES:
            judges.append(batch)
        found = sample_codes(
            model,
            batch,
            jax.random.fold_in(key, number),
            tokens=tokens,
            steps=max_new_tokens,
            stop_tokens=model.config.eos_token_ids,
        )
        samples.append(jax.tree.map(np.asarray, found))
        on_batch(len(batch.input_ids))
    if not samples:
        raise ValueError("there are no sample prompts to calibrate with")
    samples = samples[len(judges) :] or samples
    joined = _join(samples, seed)
    chosen = []
    for name in names:
        plans = [(plan, fit_codes(joined, plan, seed)) for plan in calibrated_presets[name]]
        divergence = [0.0]  # of the only plan, which needs no judge
        if len(plans) > 1:
            divergence = _divergences(model, judges, plans, steps=max_new_tokens)
        quant, tables = plans[int(np.argmin(divergence))]
        chosen.append(CalibratedPreset(tables, None, name=name, quant=quant))
        on_preset(name, divergence)
    return CalibratedCodes(tuple(chosen), model=fingerprint(model))


def _divergences(
    model: Model,
    batches: Sequence[Inputs],
    plans: Sequence[tuple[KVQuantConfig, CodeTables]],
    *,
    steps: int,
) -> list[float]:
    """Each plan's mean KL of the next token, in nats, along the model's own answers."""
    totals, positions = [0.0] * len(plans), 0.0
    for inputs in batches:
        images, question = split_after_images(inputs)
        owner = jnp.arange(len(inputs.mask), dtype=jnp.int32)
        room = inputs.prompt_shape.text + steps
        reading = teacher_forcing.read(model, images, question, owner, cache_length=room)
        exact = teacher_forcing.follow(model, reading.prompted, steps, steps=steps)
        along = exact.tokens, exact.lengths
        positions += float(exact.lengths.sum())
        for number, (quant, tables) in enumerate(plans):
            coded = teacher_forcing.read_coded(
                model, reading, tables, quant=quant, quantize_at="image"
            )
            followed = teacher_forcing.follow(model, coded, steps, along, steps=steps)
            totals[number] += float(teacher_forcing.compare(exact, followed).kl.sum())
    return [total / positions for total in totals]


def _join(samples: Sequence[CodeSamples], seed: int) -> CodeSamples:
    """All samples together, thinned out to `MOST_TOKENS` of each head."""
    prompts = np.cumsum([0, *(x.key_mean.shape[2] for x in samples)])
    samples = [
        dataclasses.replace(x, prompt=x.prompt + first)
        for x, first in zip(samples, prompts[:-1], strict=True)
    ]
    total = sum(len(x.prompt) for x in samples)
    kept = np.sort(np.random.default_rng(seed).permutation(total)[:MOST_TOKENS])

    def joined(field):
        parts = [getattr(x, field.name) for x in samples]
        if field.name.startswith("query"):
            return sum(parts[1:], parts[0])
        if field.name == "prompt":
            return np.concatenate(parts)[kept]
        whole = np.concatenate(parts, axis=2)
        return whole if field.name.endswith("mean") else whole[:, :, kept]

    fields = dataclasses.fields(CodeSamples)
    return CodeSamples(**{field.name: jnp.asarray(joined(field)) for field in fields})
