"""Names of the codes that benchmarks measure: a preset, with or without the plan of its tables."""

import dataclasses

import vkq_jax
from vkq_apps.terminal.codes_option import PLAIN, TEXT
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import calibrated_presets

__all__ = ["BASELINE", "CODES_HELP", "MeasuredCodes", "read_codes"]

BASELINE = "none"
"""The preset that rows of codes are compared with: keys and values in bfloat16."""

_TABLES = "-tables"

CODES_HELP = (
    f"No model is loaded: NAME has no tables, NAME{_TABLES} random ones of its first plan with "
    f"tables; NAME{TEXT} keeps text in 8 bits."
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


def read_codes(name: str) -> MeasuredCodes:
    """The codes of a name: a preset's, `NAME-tables`, either with `:text8` after it.

    `NAME:plain`, which elsewhere leaves a model's tables out, is the same as `NAME`.

    Raises:
        ValueError: no such preset, or one that no plan with tables belongs to.
    """
    text_bits: TextBits = 8 if name.endswith(TEXT) else None
    codes = name.removesuffix(TEXT).removesuffix(PLAIN)
    preset = codes.removesuffix(_TABLES)
    if preset == codes:
        return MeasuredCodes(vkq_jax.resolve(codes), False, text_bits)
    if preset not in calibrated_presets:
        known = ", ".join(calibrated_presets)
        raise ValueError(f"{name}: expected a preset that takes tables ({known}) before {_TABLES}")
    return MeasuredCodes(calibrated_presets[preset][0], True, text_bits)
