"""The rows of an evaluation: presets by name."""

import dataclasses

import vkq_jax
from vkq_apps.evals.coding import FULL_PRECISION

__all__ = ["CONTROL", "FULL", "NONE", "Setting", "parse_settings"]

NONE = "none"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to keep the visual cache, and its name in the results."""

    name: str
    quant: vkq_jax.KVQuantConfig


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
