"""Tables of dictionary codes, fitted to samples of a model's keys, values and queries."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.calibration.samples import CodeSamples
from vkq_jax.array_types import Array, Float
from vkq_jax.codes.code_tables import ClassTables, CodeTables, SideTables
from vkq_jax.codes.codebooks import fit_codebook
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.fitting import fit_dictionary, metric_root, mixed_basis
from vkq_jax.codes.image_centres import nearest
from vkq_jax.codes.token_classes import TokenClass
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["CodeFitter"]

_CLASS_TOKENS = 4096  # of each class and head, that its dictionary is fitted to
_BASE_WEIGHT = 0.3  # a floor in units of the mean: tokens that no sample looked at may matter, too


class CodeFitter:
    """Fits tables to samples of a model; codebooks that several settings share are fitted once."""

    def __init__(self, samples: CodeSamples, seed: int = 0):
        """Takes the samples of all layers, and the seed of random draws."""
        self._samples, self._seed = samples, seed
        self._codebooks: dict[tuple[Any, ...], Float[Array, "K M H"]] = {}

    def fit(self, quant: KVQuantConfig) -> CodeTables:
        """Tables of dictionary codes on both sides, for all layers, [L, K, ...]."""
        assert isinstance(quant.key, DictionaryCodes)
        assert isinstance(quant.value, DictionaryCodes)
        layers = [
            self._fit_layer(number, (quant.key, quant.value))
            for number in range(self._samples.key.shape[0])
        ]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)

    def _fit_layer(self, number: int, codes: tuple[DictionaryCodes, DictionaryCodes]) -> CodeTables:
        prompt = np.asarray(self._samples.prompt)
        sides = [
            self._centre_side(number, one, name)
            for one, name in zip(codes, ("key", "value"), strict=True)
        ]
        of_keys, of_values = (_per_prompt_mean(np.asarray(side.energy), prompt) for side in sides)
        # Classes go by energy, whatever `order` says: by attention, those with few bits would be
        # fitted to tokens that no sample looked at.
        member = _classes_of(of_keys + of_values, prompt, codes[0].classes)
        rng = (self._seed, number)
        return CodeTables(*(_side_tables(s, member, np.random.default_rng(rng)) for s in sides))

    def _centre_side(self, layer: int, codes: DictionaryCodes, name: str) -> _Side:
        samples = self._samples
        tokens = jnp.asarray(getattr(samples, name)[layer], jnp.float32)
        if not codes.centres:
            tokens = tokens + getattr(samples, f"{name}_mean")[layer][:, samples.prompt]
        weight = getattr(samples, f"{name}_weight")[layer]
        mean = weight.mean(-1, keepdims=True)
        weight = weight + jnp.where(mean > 0, _BASE_WEIGHT * mean, 1.0)
        metric = metric_root(samples.metric[layer]) if codes.metric else None
        measured = _measure(tokens, metric)
        codebook, residual = None, tokens
        if codes.codebook:
            kind = (name, layer, codes.codebook, codes.centres > 0, codes.metric)
            if kind not in self._codebooks:
                key = jax.random.key(self._seed * 8191 + layer)
                self._codebooks[kind] = fit_codebook(measured, weight, codes.codebook, key)
            book = self._codebooks[kind]
            number = nearest(measured, book)
            if metric is not None:
                book = jnp.swapaxes(jnp.linalg.solve(metric, jnp.swapaxes(book, -1, -2)), -1, -2)
            codebook = book.astype(jnp.bfloat16)
            stored = codebook.astype(jnp.float32)
            residual = tokens - jnp.take_along_axis(stored, number[..., None], axis=-2)
            measured = _measure(residual, metric)
        basis = None
        if codes.basis == "queries":
            moment = samples.metric[layer]
            if name == "value":  # no query reads it: as attention weighs it
                moment = jnp.einsum("knh,kn,kng->khg", residual, weight, residual)
            basis = mixed_basis(moment)
        energy = jnp.square(measured).sum(-1)
        return _Side(codes, metric, basis, codebook, residual, weight, energy)


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of a layer on the way to its tables.

    Attributes:
        codes: settings.
        metric: A, or None.
        basis: of the dictionaries; None: the principal one.
        codebook: centroids, or None.
        residual: tokens less their centres.
        weight: of each token.
        energy: |A residual|^2.
    """

    codes: DictionaryCodes
    metric: Float[Array, "K H H"] | None
    basis: Float[Array, "K H H"] | None
    codebook: Float[Array, "K M H"] | None
    residual: Float[Array, "K n H"]
    weight: Float[Array, "K n"]
    energy: Float[Array, "K n"]


def _measure(
    x: Float[Array, "K n H"], metric: Float[Array, "K H H"] | None
) -> Float[Array, "K n H"]:
    """Each x as `metric` measures it, A x; x itself where there is no metric."""
    return x if metric is None else jnp.einsum("knh,kgh->kng", x, metric)


def _side_tables(side: _Side, number: np.ndarray, rng: np.random.Generator) -> SideTables:
    """Tables of one side; `number` is the class of each token [K, n]."""
    codes, classes = side.codes, None
    if codes.learned:
        classes = tuple(_fit_class(side, number == c, c, rng) for c in range(len(codes.classes)))
    return SideTables(codebook=side.codebook, metric=side.metric, classes=classes)


def _fit_class(
    side: _Side, member: np.ndarray, number: int, rng: np.random.Generator
) -> ClassTables:
    # The same number of tokens for each head, drawn with replacement: heads are fitted together.
    chosen = np.stack([rng.choice(np.flatnonzero(row), _CLASS_TOKENS) for row in member])
    tokens = jnp.take_along_axis(side.residual, jnp.asarray(chosen)[..., None], axis=-2)
    weight = jnp.take_along_axis(side.weight, jnp.asarray(chosen), axis=-1)
    if side.codes.scale is not None:
        energy = jnp.take_along_axis(side.energy, jnp.asarray(chosen), axis=-1)
        size = jnp.sqrt(energy / tokens.shape[-1])[..., None]
        tokens = tokens / jnp.where(size == 0, 1.0, size)
    virtual = side.codes.virtual_channels(number, tokens.shape[-1])
    return fit_dictionary(tokens, weight, side.metric, virtual, side.basis)


def _per_prompt_mean(energy: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """Energies [K, n] in units of the mean of their prompt."""
    count = np.maximum(np.bincount(prompt), 1)
    mean = np.stack([np.bincount(prompt, weights=row) for row in energy]) / count
    return energy / np.where(mean == 0, 1.0, mean)[:, prompt]


def _classes_of(
    energy: np.ndarray, prompt: np.ndarray, classes: tuple[TokenClass, ...]
) -> np.ndarray:
    """The class of each token [K, n], by its rank among those of its prompt."""
    stops = np.cumsum([c.share for c in classes])[:-1]
    start = np.concatenate([[0], np.cumsum(np.bincount(prompt))])
    found = np.empty(energy.shape, int)
    for row, out in zip(energy, found, strict=True):
        order = np.lexsort((-row, prompt))
        of = prompt[order]
        rank = (np.arange(len(order)) - start[of] + 0.5) / np.diff(start)[of]
        out[order] = np.searchsorted(stops, rank, side="right")
    return found
