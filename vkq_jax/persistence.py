"""Saving and restoring caches and score maps, each in one safetensors file.

Its header holds the structure as JSON. Nothing is executed on restoring: types come from this
package or from those the caller names.
"""

import dataclasses
import enum
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import vkq_jax
from vkq_jax.cache import KVCache
from vkq_jax.calibrated import CalibratedCodes
from vkq_jax.calibration import ScoreMap
from vkq_jax.whole_file import whole_file

__all__ = [
    "load_cache",
    "load_score_map",
    "load_tables",
    "save_cache",
    "save_score_map",
    "save_tables",
]


def save_cache(path: str | os.PathLike[str], cache: KVCache) -> None:
    """Writes a cache; the file, or what a link leads to, appears whole or not at all.

    Raises:
        ValueError: something other than a regular file is there, or the cache uses what has no
            stored form.
    """
    _save(path, cache, "cache")


def load_cache(path: str | os.PathLike[str], *, types: Iterable[type] = ()) -> KVCache:
    """Reads a cache back, leaf for leaf equal to the saved one.

    Args:
        path: file written by `save_cache`.
        types: classes of your own (code families, tensors, range rules) that the cache uses.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole and consistent cache file, a type that is neither this package's nor
            in `types`, or a score map with values that are none.
    """
    cache = _load(path, "cache", KVCache, types)
    if cache.score_map is not None:
        _check_values(path, cache.score_map)
    return cache


def save_score_map(path: str | os.PathLike[str], score_map: ScoreMap) -> None:
    """Writes a static score map [L, N] and the settings of its codes, as `save_cache` does."""
    _save(path, score_map, "score map")


def load_score_map(path: str | os.PathLike[str], *, types: Iterable[type] = ()) -> ScoreMap:
    """Reads a static score map back; `models.generate` checks that it fits a model and its codes.

    Args:
        path: file written by `save_score_map`.
        types: classes of your own that its codes use, as for `load_cache`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole and consistent score map file, a type that is neither this package's
            nor in `types`, slopes that are negative, or values that are not finite.
    """
    score_map = _load(path, "score map", ScoreMap, types)
    _check_values(path, score_map)
    return score_map


def save_tables(path: str | os.PathLike[str], codes: CalibratedCodes) -> None:
    """Writes the calibrated presets of a model, as `save_cache` does."""
    _save(path, codes, "tables")


def load_tables(path: str | os.PathLike[str], *, types: Iterable[type] = ()) -> CalibratedCodes:
    """Reads calibrated presets back; `models.generate` checks that they fit a model.

    Args:
        path: file written by `save_tables`.
        types: classes of your own that its codes use, as for `load_cache`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole and consistent file of tables, or a type that is neither this
            package's nor in `types`.
    """
    return _load(path, "tables", CalibratedCodes, types)


def _check_values(path: str | os.PathLike[str], score_map: ScoreMap) -> None:
    slope, shift = np.asarray(score_map.slope), np.asarray(score_map.shift)
    if slope.shape != shift.shape:
        raise ValueError(
            f"{path}: expected a slope and a shift of each head, got {list(slope.shape)} slopes "
            f"and {list(shift.shape)} shifts"
        )
    for name, values, good, kind in (
        ("slope", slope, np.isfinite(slope) & (slope >= 0), "finite and not negative"),
        ("shift", shift, np.isfinite(shift), "finite"),
    ):
        if not good.all():
            raise ValueError(f"{path}: expected every {name} {kind}, got {values[~good][0]}")


def _save(path: str | os.PathLike[str], value: Any, kind: str) -> None:
    arrays: dict[str, np.ndarray] = {}
    structure = json.dumps(_describe(value, kind, arrays))
    with whole_file(path) as part:
        save_file(arrays, part, metadata={"format": _format(kind), "structure": structure})


def _load[T](path: str | os.PathLike[str], kind: str, cls: type[T], types: Iterable[type]) -> T:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    known = {known.__qualname__: known for known in [*_own_types(), *types]}
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _format(kind) or "structure" not in metadata:
                raise ValueError(f"{path} is not a {kind} written by vkq_jax")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        value = _rebuild(json.loads(metadata["structure"]), arrays, known)
    except (ValueError, TypeError) as error:  # TypeError: settings that a class does not take
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, cls):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a {cls.__name__}")
    return value


def _format(kind: str) -> str:
    return f"vkq-jax {kind} 1"


def _describe(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON of `value`; its arrays go to `arrays` under their path."""
    if isinstance(value, jax.Array | np.ndarray):
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__qualname__, "name": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _describe(getattr(value, field.name), f"{name}.{field.name}", arrays)
            for field in dataclasses.fields(value)
        }
        return {"type": type(value).__qualname__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_describe(v, f"{name}.{i}", arrays) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ValueError(f"{name} is a {type(value).__qualname__}, which has no stored form")


def _rebuild(node: Any, arrays: Mapping[str, np.ndarray], known: Mapping[str, type]) -> Any:
    match node:
        case {"array": name}:
            if name not in arrays:
                raise ValueError(f"expected an array {name}, got {', '.join(arrays) or 'none'}")
            return jnp.asarray(arrays[name])
        case {"enum": name, "name": member}:
            members: Mapping[str, Any] = getattr(_lookup(known, name), "__members__", {})
            if member not in members:
                raise ValueError(f"expected a member of {name}, got {member!r}")
            return members[member]
        case {"type": name, "fields": dict(fields)}:
            cls = _lookup(known, name)
            expected = sorted(field.name for field in dataclasses.fields(cls))
            if sorted(fields) != expected:
                raise ValueError(f"expected fields {expected} of {name}, got {sorted(fields)}")
            return cls(**{key: _rebuild(field, arrays, known) for key, field in fields.items()})
        case {"tuple": list(items)}:
            return tuple(_rebuild(item, arrays, known) for item in items)
        case {"value": value}:
            return value
    raise ValueError(f"unknown entry {node!r}")


def _lookup(known: Mapping[str, type], name: str) -> type:
    if name not in known:
        raise ValueError(f"the file uses the type {name}: pass the class in types=[...]")
    return known[name]


def _own_types() -> Iterable[type]:
    return (value for value in vars(vkq_jax).values() if isinstance(value, type))
