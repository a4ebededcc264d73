"""Calibrated presets of a model: found beside its checkpoint, or given; never those of another."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import jax

from models.model import AttachedCodes, Model
from models.model_fingerprint import fingerprint
from models.sharding.placing import place_tables, table_shardings
from models.text.coded_layers import coded_layers, settle_layers
from models.text.config import TextConfig
from vkq_jax.cache.head_groups import take_cells
from vkq_jax.cache.layered import AnyCache
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.files.persistence import load_tables
from vkq_jax.messages import show
from vkq_jax.settings.calibrated import CalibratedCodes, CalibratedPreset
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.layer_groups import LayerGroups, Quant, groups_of
from vkq_jax.settings.layer_settings import AnyQuant, PerLayer
from vkq_jax.settings.presets import calibrated_presets, resolve
from vkq_jax.validation import check_type, is_traced

__all__ = [
    "DEFAULT_QUANT",
    "TABLES_FILE",
    "ModelTables",
    "OwnTables",
    "attach_tables",
    "find_codes",
    "is_uncalibrated",
    "settle_codes",
    "tables_of_parts",
]

type OwnTables = CodeTables | tuple[CodeTables | None, ...] | None
"""Offline tables of a cache: of all layers, or of each of its groups of layers and heads."""

type ModelTables = CodeTables | tuple[CodeTables, ...] | None
"""Offline tables of codes for a model, see `vkq_jax.CalibratedPreset`."""

DEFAULT_QUANT = "vkq-1bit"
TABLES_FILE = "vkq_tables.safetensors"


def attach_tables(model: Model, file: str | os.PathLike[str]) -> Model:
    """The model with the calibrated presets of a file, which `generate` then takes by itself.

    Args:
        model: from `models.load`.
        file: written by `vkq calibrate` or `vkq_jax.save_tables`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken file, or one that was made for another model.
    """
    check_type("model", model, Model, hint="models.load")
    codes = _read(model, file)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return dataclasses.replace(model, calibrated=AttachedCodes(digest, codes))


def settle_codes(
    model: Model,
    quant: AnyQuant | None,
    tables: CalibratedCodes | str | os.PathLike[str] | None,
    cache: AnyCache | None,
) -> tuple[Quant, OwnTables]:
    """The codes that a conversation takes, and their offline tables.

    A cache keeps its own. Otherwise a preset's name stands for what calibration made of it, if
    `tables` or the model has a calibrated preset of that name, and for the uncalibrated one if not.

    Raises:
        ValueError: other codes than those of the cache; an unknown preset; `tables` that lack the
            preset, or belong to another model; codes that need tables where there are none.
    """
    if cache is not None:
        if quant is not None and not _stands_for(model, quant, cache.quant):
            raise ValueError(
                "a conversation keeps the codes of its cache: leave quant out, or pass "
                f"cache.quant; got {show(quant)}"
            )
        if tables is not None:
            raise ValueError("a conversation keeps the tables of its cache: leave tables out")
        return cache.quant, None  # the cache keeps its tables
    given, name = _given(model, tables), DEFAULT_QUANT if quant is None else quant
    wanted = name.named if isinstance(name, PerLayer | LayerGroups) else (name,)
    if tables is not None and given is not None and not any(map(given.find, wanted)):
        raise ValueError(
            f"tables: expected a calibrated preset {', '.join(map(repr, wanted))}, got "
            f"{', '.join(given.names)}"
        )
    return _on_devices(model, *_of_layers(model, given, name))


def find_codes(
    model: Model,
    quant: AnyQuant | None = None,
    tables: CalibratedCodes | str | os.PathLike[str] | None = None,
) -> tuple[Quant, OwnTables]:
    """The codes that a preset's name or settings stand for: calibrated ones come first.

    Tables of `per_layer` settings come for each group of layers and heads.

    Raises:
        ValueError: an unknown preset, tables of another model, or codes that need tables where
            there are none.
    """
    found = _of_layers(model, _given(model, tables), DEFAULT_QUANT if quant is None else quant)
    return _on_devices(model, *found)


def _on_devices(model: Model, quant: Quant, tables: OwnTables) -> tuple[Quant, OwnTables]:
    return quant, place_tables(model.mesh, tables, quant)


def _of_layers(
    model: Model, known: CalibratedCodes | None, quant: AnyQuant
) -> tuple[Quant, OwnTables]:
    text = model.config.text
    if not isinstance(quant, PerLayer | LayerGroups):
        settled, own = _choose(known, quant)
        return settled, tables_of_parts(text, settled, lambda _: own)
    tables: dict[KVQuantConfig, ModelTables] = {}

    def find(one: str | KVQuantConfig) -> KVQuantConfig:
        settings, own = _choose(known, one)
        tables[settings] = own
        return settings

    settled = settle_layers(text, quant, find)
    return settled, tables_of_parts(text, settled, tables.__getitem__)


def tables_of_parts(
    text: TextConfig, quant: Quant, tables_of: Callable[[KVQuantConfig], ModelTables]
) -> OwnTables:
    """Offline tables of the parts of a cache, from those of each of its settings.

    Args:
        text: the decoder.
        quant: settings of its cache.
        tables_of: gives a model's tables for settings of `quant`.
    """
    kinds = coded_layers(text)
    found: list[CodeTables | None] = [None] if text.cross_layers else []
    for number, kind in enumerate(kinds):
        for cells, own in groups_of(quant, kind.layers):
            tables = tables_of(own)
            of_kind = tables[number] if isinstance(tables, tuple) else tables
            found.append(take_cells(of_kind, cells.within(kind.layers)))
    if all(own is None for own in found):
        return None
    layered = isinstance(quant, LayerGroups) or len(found) > 1 or text.linear is not None
    return tuple(found) if layered else found[0]


def _choose(
    known: CalibratedCodes | None, quant: str | KVQuantConfig
) -> tuple[KVQuantConfig, ModelTables]:
    found = None if known is None else known.find(quant)
    if found is not None:
        return found.quant, found.tables
    settings = resolve(quant)
    sides = (settings.key, settings.value)
    if any(isinstance(side, DictionaryCodes) and side.uses_tables for side in sides):
        raise ValueError(
            "these codes need tables of the model: make them with models.calibrate_codes or "
            "`vkq calibrate` and pass tables=..."
        )
    return settings, None


def is_uncalibrated(model: Model, name: str) -> bool:
    """Whether calibration would improve a preset that the model has no tables for."""
    own = None if model.calibrated is None else model.calibrated.codes.find(name)
    return name in calibrated_presets and own is None


def _given(
    model: Model, tables: CalibratedCodes | str | os.PathLike[str] | None
) -> CalibratedCodes | None:
    if tables is None:
        return None if model.calibrated is None else model.calibrated.codes
    if isinstance(tables, CalibratedCodes):
        tables.check()
        _check(model, tables, "tables")
        return tables
    if isinstance(tables, str | os.PathLike):
        return _read(model, tables)
    raise ValueError(f"tables must be CalibratedCodes or the path of a file, got {show(tables)}")


def _read(model: Model, file: str | os.PathLike[str]) -> CalibratedCodes:
    """The presets of a file, each device's KV heads on that device, if they are this model's."""
    codes = load_tables(file, shardings=table_shardings(model.mesh))
    _check(model, codes, str(file))
    return codes


def _check(model: Model, codes: CalibratedCodes, name: str) -> None:
    if is_traced(model):
        return  # inside jit weights have no values yet; the caller has loaded model and tables
    try:
        codes.check_model(fingerprint(model))
        for preset in codes.presets:
            _check_sizes(model, preset)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_sizes(model: Model, preset: CalibratedPreset) -> None:
    """Raises ValueError for tables or a score map of other layers or heads than the model's.

    Coding checks what is left, their channels and classes.
    """
    text, kinds = model.config.text, coded_layers(model.config.text)
    layers, tables = text.num_own_layers, preset.tables
    of_kinds = tables if isinstance(tables, tuple) else (tables,) * len(kinds)
    if len(of_kinds) != len(kinds):
        raise ValueError(
            f"preset {show(preset.name)}: expected tables of {len(kinds)} kinds of layers, got "
            f"{len(of_kinds)}"
        )
    for kind, own in zip(kinds, of_kinds, strict=True):
        for leaf in jax.tree.leaves(own):
            if leaf.shape[:2] != (len(kind.layers), kind.num_kv_heads):
                raise ValueError(
                    f"preset {show(preset.name)}: expected tables of {len(kind.layers)} layers "
                    f"and {kind.num_kv_heads} KV heads, got {show(leaf)}"
                )
    scores = preset.score_map
    if scores is not None and scores.slope.shape != (layers, text.num_attention_heads):
        raise ValueError(
            f"preset {show(preset.name)}: expected a score map of {layers} layers and "
            f"{text.num_attention_heads} query heads, got {show(scores.slope)}"
        )


def _stands_for(model: Model, quant: AnyQuant, settings: Quant) -> bool:
    if isinstance(quant, PerLayer | LayerGroups):
        known = None if model.calibrated is None else model.calibrated.codes
        return any(_of_layers(model, given, quant)[0] == settings for given in (known, None))
    known = None if model.calibrated is None else model.calibrated.codes.find(quant)
    return settings == (resolve(quant) if known is None else known.quant) or (
        isinstance(quant, str) and settings == resolve(quant)
    )
