"""The rows of an evaluation: presets by name, as they are for one model."""

import dataclasses
import os
import re
from collections.abc import Sequence

import vkq_jax
from models import Model
from models.attached_tables import OwnTables, find_codes
from models.generation.recoding import FULL_PRECISION
from models.sharding.placing import table_shardings
from models.text.coded_layers import settle_layers
from vkq_apps.terminal.codes_option import PLAIN, TEXT, parse_codes
from vkq_apps.terminal.lists import entries_of
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.settings.layer_groups import Quant
from vkq_jax.settings.presets import calibrated_presets

__all__ = ["CONTROL", "FULL", "NONE", "Setting", "preset_names", "settings_of"]

NONE = "none"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to keep the visual cache.

    Attributes:
        name: in the results.
        quant: the codes.
        tables: their offline tables, if they have any.
        kept: share of the visual tokens that are kept, see `dropping`; None: all of them.
        text_bits: of text, see `vkq_jax.empty_cache`.
    """

    name: str
    quant: Quant
    tables: OwnTables = None
    kept: float | None = None
    text_bits: TextBits = None

    @property
    def exact(self) -> bool:
        """Whether this is full precision itself."""
        dense = self.kept is None and self.text_bits is None
        return self.quant == FULL_PRECISION and dense


FULL = Setting(NONE, FULL_PRECISION)
CONTROL = Setting("none, other pictures", FULL_PRECISION)
"""Full precision, asked about another picture: the score of guessing."""


def preset_names(text: str) -> list[str]:
    """The presets of a comma-separated list, each once, without `none`.

    Raises:
        ValueError: no names, or no preset of a name.
    """
    names = entries_of(text)
    if not names:
        raise ValueError(f"--quant: expected names of presets with commas between, got {text!r}")
    names = [name for name in names if name != NONE]
    for name in names:
        codes = name.removesuffix(TEXT)
        if _kept(codes) is not None:
            if codes != name:
                raise ValueError(f"--quant: {codes} keeps text as it is, expected no {TEXT}")
        elif codes not in calibrated_presets:
            parse_codes(codes.removesuffix(PLAIN))
    return names


def _kept(name: str) -> float | None:
    """The share that `keep-7%` keeps; None for another name."""
    if (found := re.fullmatch(r"keep-(\d+(?:\.\d+)?)%", name)) is None:
        return None
    share = float(found[1]) / 100
    if not 0 < share < 1:
        raise ValueError(f"--quant: expected more than 0 % and less than 100 %, got {name!r}")
    return share


def settings_of(
    model: Model, names: Sequence[str], tables: str | os.PathLike[str] | None = None
) -> list[Setting]:
    """Full precision first, then the presets, calibrated for the model where they can be.

    Args:
        model: from `models.load`.
        names: from `preset_names`.
        tables: file of calibrated presets; by default those that the model found.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the tables belong to another model, or a preset needs tables and has none.
    """
    given = None
    if tables is not None:
        given = vkq_jax.load_tables(tables, shardings=table_shardings(model.mesh))
    settings = [FULL]
    for name in names:
        if (share := _kept(name)) is not None:
            settings.append(Setting(name, FULL_PRECISION, kept=share))
            continue
        named = name.removesuffix(TEXT)
        text_bits = None if named == name else 8
        try:
            quant, own = _codes(model, named, given)
        except ValueError as error:
            raise ValueError(f"--quant {name}: {error}") from error
        settings.append(Setting(name, quant, own, text_bits=text_bits))
    return settings


def _codes(
    model: Model, name: str, given: vkq_jax.CalibratedCodes | None
) -> tuple[Quant, OwnTables]:
    if not name.endswith(PLAIN):
        return find_codes(model, parse_codes(name), given)
    codes = parse_codes(name.removesuffix(PLAIN))
    if isinstance(codes, vkq_jax.PerLayer):
        return settle_layers(model.config.text, codes), None
    return vkq_jax.resolve(codes), None
