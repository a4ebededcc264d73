"""Names of the codes that benchmarks measure: a preset, with or without the plan of its tables."""

import dataclasses
import re

import vkq_jax
from vkq_apps.terminal.codes_option import PLAIN, TEXT
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import calibrated_presets

__all__ = ["BASELINE", "CODES_HELP", "MeasuredCodes", "calibrated_plan", "read_codes"]

BASELINE = "none"
"""The preset that rows of codes are compared with: keys and values in bfloat16."""

_PLAN = re.compile(r"(?P<preset>.+)-(?:tables|plan(?P<number>[0-9]))")

CODES_HELP = (
    "No model is loaded: NAME has no tables, NAME-tables random ones of its first plan with "
    f"tables, NAME-plan1 of the plan with number 1; NAME{TEXT} keeps text in 8 bits."
)


@dataclasses.dataclass(frozen=True)
class MeasuredCodes:
    """Codes of a visual cache and bits of its text.

    Attributes:
        quant: of the visual cache.
        has_tables: whether random tables stand for a model's own.
        text_bits: of text; None: the model's dtype.
    """

    quant: KVQuantConfig
    has_tables: bool
    text_bits: TextBits


def calibrated_plan(name: str) -> KVQuantConfig | None:
    """The plan of `PRESET-tables`, which is number 0, or of `PRESET-planN`; None: another name.

    Raises:
        ValueError: the preset has no such plan with tables.
    """
    if (match := _PLAN.fullmatch(name)) is None:
        return None
    preset, number = match["preset"], int(match["number"] or 0)
    plans = calibrated_presets.get(preset, ())
    if number < len(plans):
        return plans[number]
    if plans:
        raise ValueError(f"{name}: expected a plan of {preset} from 0 to {len(plans) - 1}")
    known = ", ".join(calibrated_presets)
    raise ValueError(f"{name}: expected a preset that takes tables ({known}) before its last part")


def read_codes(name: str) -> MeasuredCodes:
    """The codes of a name: a preset's, or of a plan with tables; `:text8` may follow.

    `NAME:plain`, which elsewhere leaves a model's tables out, is the same as `NAME`.

    Raises:
        ValueError: no such preset or plan, see `calibrated_plan`.
    """
    text_bits: TextBits = 8 if name.endswith(TEXT) else None
    codes = name.removesuffix(TEXT).removesuffix(PLAIN)
    if plan := calibrated_plan(codes):
        return MeasuredCodes(plan, True, text_bits)
    return MeasuredCodes(vkq_jax.resolve(codes), False, text_bits)
