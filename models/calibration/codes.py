"""Calibration of codes: tables from sample pictures and prompts, and the plan that does best."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from models.attached_tables import ModelTables
from models.calibration.fitting import CodeFitter
from models.calibration.folder import CalibrationFolder, digest_of
from models.calibration.judging import divergences
from models.calibration.samples import CodeSamples, sample_codes
from models.generation.argument_checks import check_count
from models.generation.room import check_answer_fits
from models.inputs.batch import Inputs, batches_of
from models.inputs.on_mesh import place_inputs
from models.model import Model
from models.model_fingerprint import fingerprint
from models.sharding.placing import place_shared, place_tables
from vkq_jax.messages import show
from vkq_jax.settings.calibrated import CalibratedCodes, CalibratedPreset
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import calibrated_presets
from vkq_jax.validation import as_items, check_size, check_type, whole_number

__all__ = ["calibrate_codes", "gather_samples"]

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
    folder: str | os.PathLike[str] | None = None,
    implementation: str | None = None,
    on_batch: Callable[[int], None] = lambda prompts: None,
    on_plan: Callable[[str, int], None] = lambda name, number: None,
    on_preset: Callable[[str, Sequence[float]], None] = lambda name, divergence: None,
) -> CalibratedCodes:
    """Tables of a model's codes, from its keys, values and queries on sample prompts.

    Each batch is answered greedily at full precision. The first 32 prompts compare the plans of a
    preset; if there are more prompts, tables are fitted to the others alone. Not for use inside
    jit.

    Args:
        model: from `models.load`.
        inputs: batches of sample prompts, each with images. From a few dozen pictures on tables
            are good, more make them better: learned dictionaries fit themselves to few.
        presets: names of those to calibrate; all that calibration improves by default.
        tokens: visual tokens to keep of each prompt, for each head.
        max_new_tokens: most tokens of each answer.
        seed: of random draws.
        folder: where samples and tables are kept as they are found. A call with the same model and
            arguments takes them from there, for instance after a kill; files are never removed.
            None on several hosts.
        implementation: of attention over the cache and of coding, as for `models.generate`.
        on_batch: is told the number of prompts of each batch that is read.
        on_plan: is told the preset and the number of each plan that has its tables.
        on_preset: is told each preset and the KL of its plans, of which the least is taken (none
            where there is one plan), see `vkq_jax.settings.presets.calibrated_presets`.

    Raises:
        ValueError: no presets or an unknown one, no prompts, a prompt without an image, an
            unknown implementation, or another argument of a wrong type or size.
    """
    check_type("model", model, Model, hint="models.load")
    names = _check_presets(presets)
    check_size("tokens", tokens, MOST_TOKENS)
    max_new_tokens = check_count("max_new_tokens", max_new_tokens)
    seed = _check_seed(seed)
    pallas_kernels.choose_implementation(implementation)
    kept, mark = CalibrationFolder(folder), fingerprint(model)
    judges, sampled = _split(_read(inputs, on_batch))
    samples, digest = gather_samples(
        model,
        sampled,
        tokens=tokens,
        max_new_tokens=max_new_tokens,
        seed=seed,
        kept=kept,
        implementation=implementation,
    )
    fitters = [CodeFitter(own, seed) for own in samples]
    plans: dict[str, list[tuple[KVQuantConfig, ModelTables]]] = {name: [] for name in names}
    for name in names:
        for number, quant in enumerate(calibrated_presets[name]):
            make = functools.partial(_fit, fitters, quant)
            plans[name].append((quant, kept.tables(digest_of(digest, seed, quant), quant, make)))
            on_plan(name, number)
    # The only plan of a preset needs no judge.
    rivals = [plan for some in plans.values() if len(some) > 1 for plan in some]
    judged = iter(
        divergences(
            model, judges, rivals, steps=max_new_tokens, kept=kept, implementation=implementation
        )
    )
    chosen = []
    for name, some in plans.items():
        divergence = [next(judged) for _ in some] if len(some) > 1 else []
        quant, tables = some[int(np.argmin(divergence))] if divergence else some[0]
        chosen.append(CalibratedPreset(tables, None, name=name, quant=quant))
        on_preset(name, divergence)
    return place_tables(model.mesh, CalibratedCodes(tuple(chosen), model=mark))


def _check_presets(presets: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the presets to calibrate, all by default; ValueError for one that has no plans."""
    names = tuple(calibrated_presets) if presets is None else as_items(presets)
    unknown = [name for name in names or () if name not in calibrated_presets]
    if not names or unknown:
        got = show(presets) if names is None else show(unknown[0]) if unknown else "none"
        raise ValueError(f"presets: expected some of {', '.join(calibrated_presets)}, got {got}")
    return names


def _check_seed(seed: int) -> int:
    drawn = whole_number(seed)
    if drawn is None or not 0 <= drawn < 2**31:
        raise ValueError(f"seed: expected a whole number from 0 to {2**31 - 1}, got {show(seed)}")
    return drawn


def _split(batches: Iterator[Inputs]) -> tuple[list[Inputs], Iterator[Inputs]]:
    """Batches of the prompts that compare plans, and those that tables are fitted to.

    Tables are fitted to the same prompts where there are no others.
    """
    judges: list[Inputs] = []
    while sum(len(x.mask) for x in judges) < _JUDGES and (batch := next(batches, None)) is not None:
        judges.append(batch)
    if not judges:
        raise ValueError("there are no sample prompts to calibrate with")
    first = next(batches, None)
    return judges, iter(judges) if first is None else itertools.chain([first], batches)


def gather_samples(
    model: Model,
    inputs: Iterable[Inputs],
    *,
    tokens: int,
    max_new_tokens: int,
    seed: int,
    kept: CalibrationFolder,
    implementation: str | None = None,
) -> tuple[tuple[CodeSamples, ...], str]:
    """Samples of all batches together, and a digest of all that they depend on.

    Samples are of each kind of `models.text.coded_layers.coded_layers`. Arguments are those of
    `calibrate_codes`; `kept` has the samples of batches that were read before.
    """
    mark, key, samples, digests = fingerprint(model), jax.random.key(seed), [], []
    for number, batch in enumerate(inputs):
        check_answer_fits(model, batch, max_new_tokens)
        digests.append(digest_of(mark, batch, number, seed, tokens, max_new_tokens, implementation))
        make = functools.partial(
            sample_codes,
            model,
            place_inputs(model.mesh, batch),
            place_shared(model.mesh, jax.random.fold_in(key, number)),
            tokens=tokens,
            steps=max_new_tokens,
            stop_tokens=model.config.eos_token_ids,
            implementation=implementation,
        )
        samples.append(kept.samples(digests[-1], make))
    joined = tuple(_join(of_kind, seed) for of_kind in zip(*samples, strict=True))
    return joined, digest_of(digests)


def _fit(fitters: Sequence[CodeFitter], quant: KVQuantConfig) -> ModelTables:
    """Tables of one plan for all kinds of layers."""
    tables = tuple(fitter.fit(quant) for fitter in fitters)
    return tables[0] if len(tables) == 1 else tables


def _read(inputs: Iterable[Inputs], on_batch: Callable[[int], None]) -> Iterator[Inputs]:
    """The batches, each checked."""
    for batch in batches_of(inputs):
        if not bool((batch.visual_mask & batch.mask).any(-1).all()):
            raise ValueError("every sample prompt needs an image to calibrate with")
        if not batch.prompt_shape.suffix:
            raise ValueError("expected sample prompts with a question behind the image, got none")
        yield batch
        on_batch(len(batch.mask))


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
