"""Calibration of codes: codebooks from sample pictures and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models.code_samples import CodeSamples, sample_codes
from models.fingerprint import fingerprint
from models.inputs import Inputs
from models.model import Model
from vkq_jax.calibrated import CalibratedCodes, CalibratedPreset
from vkq_jax.code_tables import CodeTables, SideTables
from vkq_jax.codebooks import fit_codebook
from vkq_jax.config import KVQuantConfig
from vkq_jax.dictionary_codes import DictionaryCodes
from vkq_jax.presets import calibrated_presets

__all__ = ["calibrate_codes", "fit_codes"]

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
) -> CalibratedCodes:
    """Tables of a model's codes, from its keys, values and queries on sample prompts.

    Each batch is answered greedily at full precision. Not for use inside jit.

    Args:
        model: from `models.load`.
        inputs: batches of sample prompts, each with images: a few dozen pictures do.
        presets: names of those to calibrate; all that calibration improves by default.
        tokens: visual tokens to keep of each prompt, for each head.
        max_new_tokens: most tokens of each answer.
        seed: of what is drawn at random.
        on_batch: is told the number of prompts of each batch that is done.

    Raises:
        ValueError: an unknown preset, no prompts, or a prompt without an image.
    """
    names = list(calibrated_presets) if presets is None else list(presets)
    for name in names:
        if name not in calibrated_presets:
            known = ", ".join(calibrated_presets)
            raise ValueError(f"presets: expected some of {known}, got {name!r}")
    key, samples = jax.random.key(seed), []
    for number, batch in enumerate(inputs):
        if not bool((batch.visual_mask & batch.mask).any(-1).all()):
            raise ValueError("every sample prompt needs an image to calibrate with")
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
    joined = _join(samples, seed)
    calibrated = [
        CalibratedPreset(
            fit_codes(joined, calibrated_presets[name], key), None, name=name,
            quant=calibrated_presets[name],
        )
        for name in names
    ]  # fmt: skip
    return CalibratedCodes(tuple(calibrated), model=fingerprint(model))


def fit_codes(samples: CodeSamples, quant: KVQuantConfig, key: jax.Array) -> CodeTables:
    """Tables of one preset's codes, for all layers."""
    sides = ((quant.key, samples.key), (quant.value, samples.value))
    return CodeTables(*(_fit_side(codes, tokens, key) for codes, tokens in sides))


def _fit_side(
    codes: DictionaryCodes | object, tokens: jax.Array | np.ndarray, key: jax.Array
) -> SideTables:
    if not isinstance(codes, DictionaryCodes) or not codes.codebook:
        return SideTables()
    layers = [
        fit_codebook(jnp.asarray(layer), codes.codebook, jax.random.fold_in(key, number))
        for number, layer in enumerate(tokens)
    ]
    return SideTables(codebook=jnp.stack(layers).astype(jnp.bfloat16))


def _join(samples: Sequence[CodeSamples], seed: int) -> CodeSamples:
    """All samples together, thinned out to `MOST_TOKENS` of each head."""
    total = sum(x.key.shape[2] for x in samples)
    kept = np.sort(np.random.default_rng(seed).permutation(total)[:MOST_TOKENS])
    stops = np.cumsum([x.key.shape[2] for x in samples])
    starts = [0, *stops[:-1]]
    chosen = [
        kept[(start <= kept) & (kept < stop)] - start
        for start, stop in zip(starts, stops, strict=True)
    ]

    def tokens(name):
        parts = (getattr(x, name)[:, :, i] for x, i in zip(samples, chosen, strict=True))
        return jnp.asarray(np.concatenate(list(parts), axis=2))

    moments = jax.tree.map(
        lambda *parts: jnp.asarray(sum(parts)),
        *((x.query_moment, x.query_weight) for x in samples),
    )
    return CodeSamples(tokens("key"), tokens("value"), *moments)
