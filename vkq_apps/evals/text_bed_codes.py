"""Codes of the project on keys and values of a text model: tables, bits and decoded values."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from models.calibration.fitting import CodeFitter
from models.calibration.samples import CodeSamples
from vkq_apps.evals.text_bed_model import Observed
from vkq_jax.array_types import Array, Float
from vkq_jax.cache.visual_bank import VisualBank, code_bank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.pytree import nbytes, take_layer
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import calibrated_presets, resolve

__all__ = ["Coded", "Plan", "code", "fitted", "plans_of", "samples_of", "uncalibrated"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings with the tables they need.

    `number` is that among the preset's plans, None without tables.
    """

    quant: KVQuantConfig
    tables: CodeTables | None = None
    number: int | None = None


@dataclasses.dataclass(frozen=True)
class Coded:
    """Keys and values of some texts as their codes have them, and bits per element of either."""

    key: Float[np.ndarray, "L B K V H"]
    value: Float[np.ndarray, "L B K V H"]
    bits: tuple[float, float]

    def of_text(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values [L, K, V, H] of one text."""
        return self.key[:, index], self.value[:, index]


def plans_of(name: str) -> tuple[KVQuantConfig, ...]:
    """The settings that a preset's name may stand for once there are tables; () if it has none."""
    return calibrated_presets.get(name, ())


def uncalibrated(name: str) -> Plan:
    """A preset where nothing is calibrated.

    Raises:
        ValueError: there is no such preset, or it maps scores, which belong to no key or value.
    """
    quant = resolve(name)
    if quant.calibration is not None:
        raise ValueError(
            f"--quant: {name!r} also maps attention scores, which the text bed leaves alone; "
            "expected presets that code keys and values only"
        )
    return Plan(quant)


def fitted(name: str, samples: CodeSamples, seed: int) -> list[Plan]:
    """The plans of a preset with tables for the model."""
    fitter = CodeFitter(samples, seed)
    return [Plan(quant, fitter.fit(quant), number) for number, quant in enumerate(plans_of(name))]


def samples_of(texts: Sequence[Observed]) -> CodeSamples:
    """The samples that tables are fitted to."""

    def side(name: str) -> tuple[Array, Array]:
        whole = jnp.stack([getattr(text, name) for text in texts], 2)  # [L, K, P, V, H]
        mean = whole.mean(3)
        centred = whole - mean[:, :, :, None]
        return centred.reshape(*whole.shape[:2], -1, whole.shape[-1]), mean

    def weight(name: str) -> Array:
        return jnp.concatenate([getattr(text, name) for text in texts], 2)

    def total(name: str) -> Array:
        return jnp.asarray(np.sum([getattr(text, name) for text in texts], 0))

    (key, key_mean), (value, value_mean) = side("key"), side("value")
    return CodeSamples(
        key=key,
        value=value,
        key_mean=key_mean,
        value_mean=value_mean,
        prompt=jnp.repeat(jnp.arange(len(texts), dtype=jnp.int32), texts[0].key.shape[2]),
        key_weight=weight("key_weight"),
        value_weight=weight("value_weight"),
        query_moment=total("query_moment"),
        query_weight=total("query_weight"),
    )


def code(
    plan: Plan, key: np.ndarray, value: np.ndarray, attention: np.ndarray | None = None
) -> Coded:
    """Codes and decodes the keys and values [L, B, K, V, H] of some texts, layer by layer.

    `attention` [L, B, K, V] is that of `TextModel.read`.
    """
    valid = jnp.ones((key.shape[1], key.shape[3]), bool)
    decoded: list[tuple[np.ndarray, np.ndarray]] = []
    bits = np.zeros(2)
    for layer in range(len(key)):
        tables = take_layer(plan.tables, layer)
        paid = None if attention is None else attention[layer]
        bank, key_hat, value_hat = _code_layer(
            key[layer], value[layer], paid, valid, plan.quant, tables
        )
        decoded.append((np.asarray(key_hat), np.asarray(value_hat)))
        bits += _bits(bank, key[layer].size)
    keys, values = (np.stack(side) for side in zip(*decoded, strict=True))
    mean = bits / len(key)
    return Coded(keys, values, (float(mean[0]), float(mean[1])))


@partial(jax.jit, static_argnames="quant")
def _code_layer(
    key: Array,
    value: Array,
    attention: Array | None,
    valid: Array,
    quant: KVQuantConfig,
    tables: CodeTables | None,
) -> tuple[VisualBank, Array, Array]:
    """A layer's bank, and its keys and values decoded."""
    bank = code_bank(key, value, valid, quant, tables, attention)
    return bank, *bank.dequantize(tables)


def _bits(bank: VisualBank, elements: int) -> np.ndarray:
    """Bits per element of keys and of values, the tables of a sequence counted."""
    sides = np.array([nbytes(bank.key), nbytes(bank.value)], float)
    # Bytes that both sides share (the map of classes) are halved between them.
    return 8 * (sides + nbytes(bank.class_map) / 2) / elements
