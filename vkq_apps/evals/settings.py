"""The rows of an evaluation: presets by name."""

import dataclasses

import vkq_jax
from vkq_apps.evals.coding import FULL_PRECISION

__all__ = ["NONE", "Setting", "parse_settings"]

NONE = "none"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to keep the visual cache, and its name in the results."""

    name: str
    quant: vkq_jax.KVQuantConfig


def parse_settings(names: str) -> list[Setting]:
    """Full precision first, then the presets that a comma-separated list names, each once.

    Raises:
        ValueError: there is no preset of a name.
    """
    asked = dict.fromkeys(name for name in map(str.strip, names.split(",")) if name)
    asked.pop(NONE, None)
    settings = [Setting(name, vkq_jax.resolve(name)) for name in asked]
    return [Setting(NONE, FULL_PRECISION), *settings]
