"""The rows of an ablation: plans of the presets with one part left out or replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp

import vkq_jax
from models.calibration.fitting import CodeFitter
from models.calibration.samples import CodeSamples
from vkq_jax.codes.code_tables import ClassTables, CodeTables
from vkq_jax.codes.token_classes import TokenClass
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import calibrated_presets, presets

__all__ = [
    "DEFAULT_PLANS",
    "PARTS",
    "PARTS_HELP",
    "PLAIN",
    "PLANS",
    "Variant",
    "chosen_rows",
    "variants",
]

BY_ENERGY = "classes by energy alone"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: a plan with a part left out.

    Attributes:
        name: of the row.
        quant: the codes.
        samples: what is done to the samples before tables are fitted.
        tables: to the tables.
    """

    name: str
    quant: KVQuantConfig
    samples: Callable[[CodeSamples], CodeSamples] = lambda samples: samples
    tables: Callable[[CodeTables], CodeTables] = lambda tables: tables

    @property
    def uses_tables(self) -> bool:
        """Whether its codes need tables."""
        assert isinstance(self.quant.key, vkq_jax.DictionaryCodes)
        return self.quant.key.uses_tables

    def fit(self, fitter: CodeFitter) -> CodeTables:
        """Its tables, from a fitter to its `samples`."""
        return self.tables(fitter.fit(self.quant))

    @property
    def part(self) -> str:
        """The part that is left out or replaced; "" for a whole plan."""
        return self.name.partition(": ")[2]


def one_class(quant: KVQuantConfig) -> KVQuantConfig:
    """All tokens alike, with the mean of the classes' bits, to the next half."""

    def mean(codes: vkq_jax.DictionaryCodes) -> tuple[TokenClass, ...]:
        return (TokenClass(1.0, round(2 * sum(c.share * c.planes for c in codes.classes)) / 2),)

    sides = {side: getattr(quant, side) for side in ("key", "value")}
    return KVQuantConfig(
        **{side: dataclasses.replace(c, classes=mean(c)) for side, c in sides.items()}
    )


def whole_planes(quant: KVQuantConfig) -> KVQuantConfig:
    """Hadamard planes in place of learned dictionaries; tokens have scales where they had none."""

    def planes(codes: vkq_jax.Quantizer) -> vkq_jax.DictionaryCodes:
        assert isinstance(codes, vkq_jax.DictionaryCodes)
        scale = codes.scale or "norm"
        return dataclasses.replace(
            codes, learned=False, metric=False, basis="principal", scale=scale
        )

    return KVQuantConfig(planes(quant.key), planes(quant.value))


def equal_weights(samples: CodeSamples) -> CodeSamples:
    """Every token counts alike, whatever attention it gets."""
    return dataclasses.replace(
        samples,
        key_weight=jnp.ones_like(samples.key_weight),
        value_weight=jnp.ones_like(samples.value_weight),
    )


def without_gains(tables: CodeTables) -> CodeTables:
    """Channels as the grid of least squared error has them, which is biased towards 0."""

    def plain(one: ClassTables) -> ClassTables:
        step = jnp.take_along_axis(one.step, one.channel, axis=-1)
        return dataclasses.replace(one, weight=step * 2.0 ** (one.shift - 1).astype(jnp.float32))

    def side(tables):
        return dataclasses.replace(tables, classes=tuple(map(plain, tables.classes)))

    return CodeTables(side(tables.key), side(tables.value))


def variants(name: str, number: str) -> Iterator[Variant]:
    """A plan of a preset and its rows, the whole plan first; "plain": that without tables."""
    if number == PLAIN:
        yield from _plain_variants(name)
        return
    quant = calibrated_presets[name][int(number)]
    label = f"{name}, plan {number}"
    key, value = quant.key, quant.value
    assert isinstance(key, vkq_jax.DictionaryCodes)
    assert isinstance(value, vkq_jax.DictionaryCodes)
    yield Variant(label, quant)
    yield Variant(f"{label}: one class of tokens", one_class(quant))
    if key.order == "attention":
        yield Variant(f"{label}: {BY_ENERGY}", quant.with_codes(order="energy"))
    yield Variant(f"{label}: no codebook", quant.with_codes(codebook=0, centres=1))
    if key.centres:
        yield Variant(f"{label}: no mean of the image's own", quant.with_codes(centres=0))
    else:
        yield Variant(f"{label}: with the image's own mean", quant.with_codes(centres=1))
    yield Variant(f"{label}: tokens not weighted", quant, samples=equal_weights)
    if key.learned:
        yield Variant(f"{label}: no gains", quant, tables=without_gains)
        if key.metric:
            yield Variant(f"{label}: no metric", quant.with_codes(metric=False))
        yield Variant(f"{label}: Hadamard planes", whole_planes(quant))
    if key.scale == "unbiased":
        yield Variant(f"{label}: scales of least squared error", quant.with_codes(scale="norm"))
    elif key.scale == "norm":
        yield Variant(f"{label}: unbiased scales", quant.with_codes(scale="unbiased"))


def _plain_variants(name: str) -> Iterator[Variant]:
    quant, label = presets[name], f"{name} without tables"
    yield Variant(label, quant)
    yield Variant(f"{label}: one class of tokens", one_class(quant))
    yield Variant(f"{label}: {BY_ENERGY}", quant.with_codes(order="energy"))
    yield Variant(f"{label}: one centre", quant.with_codes(centres=1))
    assert isinstance(quant.key, vkq_jax.DictionaryCodes)
    if quant.key.smoothing:
        alike = dataclasses.replace(quant.key, smoothing=0.0)
        yield Variant(f"{label}: channels in one unit", KVQuantConfig(alike, quant.value))
    if quant.key.scale != "unbiased":
        yield Variant(f"{label}: unbiased scales", quant.with_codes(scale="unbiased"))


PLAIN = "plain"
PLANS = [
    f"{name}/{number}"
    for name, some in calibrated_presets.items()
    for number in [*range(len(some)), *[PLAIN] * name.startswith("vkq-")]
]
ROWS = {plan: list(variants(name, i)) for plan in PLANS for name, i in [plan.split("/")]}
PARTS = list(dict.fromkeys(row.part for some in ROWS.values() for row in some if row.part))
PARTS_HELP = "Rows of the plans to measure, beside the whole ones."
DEFAULT_PLANS = ",".join(x for x in PLANS if x.startswith("vkq-") and not x.endswith(PLAIN))


def chosen_rows(plans: Sequence[str], parts: Sequence[str]) -> list[list[Variant]]:
    """The rows of each plan, the whole one first, then those of `parts` that it has."""
    return [[row for row in ROWS[plan] if not row.part or row.part in parts] for plan in plans]
