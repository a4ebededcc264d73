"""Stored form of frozen dataclasses: JSON of their structure, and their arrays by name.

Nothing is executed on rebuilding: types are looked up among those that the caller knows.
"""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vkq_jax.messages import show
from vkq_jax.sharding.hosts import to_host

__all__ = ["describe", "digest_of", "rebuild", "share_equal"]


def describe(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON of `value`; its arrays go to `arrays` under their path, which begins with `name`.

    Raises:
        ValueError: something in it is neither an array, a dataclass, an enum's member, a tuple, nor
            a plain number or string.
    """
    if isinstance(value, jax.Array | np.ndarray):
        arrays[name] = to_host(value)
        return {"array": name}
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__qualname__, "name": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: describe(getattr(value, field.name), f"{name}.{field.name}", arrays)
            for field in dataclasses.fields(value)
        }
        return {"type": type(value).__qualname__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [describe(v, f"{name}.{i}", arrays) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ValueError(f"{name} is a {type(value).__qualname__}, which has no stored form")


def share_equal(
    description: Any, arrays: Mapping[str, np.ndarray]
) -> tuple[Any, dict[str, np.ndarray]]:
    """The same JSON and arrays, with equal arrays stored once, under the name of the first one."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    kept = {}
    for name, array in arrays.items():
        content = hashlib.sha256(_content(array).data).digest()
        kept[name] = first.setdefault((str(array.dtype), array.shape, content), name)

    def renamed(node: Any) -> Any:
        if isinstance(node, list):
            return [renamed(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "array" in node:
            return {"array": kept[node["array"]]}
        return {key: renamed(item) for key, item in node.items()}

    return renamed(description), {name: arrays[name] for name in first.values()}


def rebuild(node: Any, arrays: Mapping[str, Any], known: Mapping[str, type]) -> Any:
    """The inverse of `describe`.

    Args:
        node: JSON of a value.
        arrays: by their names, arrays or what stands for them.
        known: types by their qualified names.

    Raises:
        ValueError: an array, a type or a field is missing or unknown.
    """
    match node:
        case {"array": str(name)}:
            if name not in arrays:
                raise ValueError(f"expected an array {name}, got {', '.join(arrays) or 'none'}")
            return arrays[name]
        case {"enum": str(name), "name": str(member)}:
            members: Mapping[str, Any] = getattr(_lookup(known, name), "__members__", {})
            if member not in members:
                raise ValueError(f"expected a member of {name}, got {show(member)}")
            return members[member]
        case {"type": str(name), "fields": dict(fields)}:
            cls = _lookup(known, name)
            if not dataclasses.is_dataclass(cls):
                raise ValueError(f"expected a type with fields, got {name}")
            expected = sorted(field.name for field in dataclasses.fields(cls))
            if sorted(fields) != expected:
                raise ValueError(f"expected fields {expected} of {name}, got {sorted(fields)}")
            return cls(**{key: rebuild(field, arrays, known) for key, field in fields.items()})
        case {"tuple": list(items)}:
            return tuple(rebuild(item, arrays, known) for item in items)
        case {"value": value}:
            return value
    raise ValueError(f"unknown entry {show(node)}")


def _lookup(known: Mapping[str, type], name: str) -> type:
    if name not in known:
        raise ValueError(f"the file uses the type {name}: pass the class in types=[...]")
    return known[name]


def digest_of(structure: str, arrays: Mapping[str, np.ndarray]) -> str:
    """A checksum of all that a file holds, whatever the order of its arrays."""
    digest = hashlib.sha256(structure.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(_content(array).data)
    return digest.hexdigest()


def _content(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, whatever they stand for: NaN equals NaN, and 0 is not -0."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
