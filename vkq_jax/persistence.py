"""Saving and restoring caches and score maps, each in one safetensors file.

Its header holds the structure as JSON. Nothing is executed on restoring: types come from this
package or from those the caller names.
"""

import dataclasses
import enum
import json
import os
import tempfile
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
from vkq_jax.calibration import ScoreMap

__all__ = ["load_cache", "load_score_map", "save_cache", "save_score_map"]


def save_cache(path: str | os.PathLike[str], cache: KVCache) -> None:
    """Writes a cache; the file appears whole or not at all."""
    _save(path, cache, "cache")


def load_cache(path: str | os.PathLike[str], *, types: Iterable[type] = ()) -> KVCache:
    """Reads a cache back, leaf for leaf equal to the saved one.

    Args:
        path: file written by `save_cache`.
        types: classes of your own (code families, tensors, range rules) that the cache uses.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole cache file, or a type that is neither this package's nor in `types`.
    """
    return _load(path, "cache", KVCache, types)


def save_score_map(path: str | os.PathLike[str], score_map: ScoreMap) -> None:
    """Writes a static score map [L, N]; the file appears whole or not at all."""
    _save(path, score_map, "score map")


def load_score_map(path: str | os.PathLike[str]) -> ScoreMap:
    """Reads a static score map back; whether it fits a model is for its user to check.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole score map file.
    """
    return _load(path, "score map", ScoreMap)


def _save(path: str | os.PathLike[str], value: Any, kind: str) -> None:
    arrays: dict[str, np.ndarray] = {}
    structure = json.dumps(_describe(value, kind, arrays))
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(arrays, temporary, metadata={"format": _format(kind), "structure": structure})
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _load[T](
    path: str | os.PathLike[str], kind: str, cls: type[T], types: Iterable[type] = ()
) -> T:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    known = {known.__qualname__: known for known in [*_own_types(), *types]}
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _format(kind):
                raise ValueError(f"{path} is not a {kind} written by vkq_jax")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    value = _rebuild(json.loads(metadata["structure"]), arrays, known)
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
            return jnp.asarray(arrays[name])
        case {"enum": name, "name": member}:
            return _lookup(known, name)[member]  # type: ignore[index]
        case {"type": name, "fields": fields}:
            values = {key: _rebuild(field, arrays, known) for key, field in fields.items()}
            return _lookup(known, name)(**values)
        case {"tuple": items}:
            return tuple(_rebuild(item, arrays, known) for item in items)
        case {"value": value}:
            return value
    raise ValueError(f"unknown entry in a cache file: {node!r}")


def _lookup(known: Mapping[str, type], name: str) -> type:
    if name not in known:
        raise ValueError(f"the cache uses the type {name}: pass it as load_cache(..., types=[...])")
    return known[name]


def _own_types() -> Iterable[type]:
    return (value for value in vars(vkq_jax).values() if isinstance(value, type))
