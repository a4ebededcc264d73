"""The rows of an evaluation: presets by name."""

import dataclasses
import os
from collections.abc import Sequence

import models
import vkq_jax
from models.calibrated import find_codes
from models.recoding import FULL_PRECISION

__all__ = ["CONTROL", "FULL", "NONE", "Setting", "calibrated", "parse_settings"]

NONE = "none"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to keep the visual cache, its name in the results, and its offline tables."""

    name: str
    quant: vkq_jax.KVQuantConfig
    tables: vkq_jax.CodeTables | None = None


FULL = Setting(NONE, FULL_PRECISION)
CONTROL = Setting("none, other pictures", FULL_PRECISION)
"""Full precision, asked about another picture: what guessing would get."""


def parse_settings(names: str) -> list[Setting]:
    """Full precision first, then the presets that a comma-separated list names, each once.

    Raises:
        ValueError: there is no preset of a name.
    """
    asked = dict.fromkeys(name for name in map(str.strip, names.split(",")) if name)
    asked.pop(NONE, None)
    return [FULL, *(Setting(name, vkq_jax.resolve(name)) for name in asked)]


def calibrated(
    settings: Sequence[Setting],
    model: models.Model,
    tables: vkq_jax.CalibratedCodes | str | os.PathLike[str] | None = None,
) -> list[Setting]:
    """The settings as they are for a model: its own, or the given, calibrated presets count.

    Raises:
        ValueError: the tables belong to another model.
    """
    return [
        setting
        if setting.quant == FULL_PRECISION
        else Setting(setting.name, *find_codes(model, setting.name, tables))
        for setting in settings
    ]
