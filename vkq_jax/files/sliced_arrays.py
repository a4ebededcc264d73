"""Arrays of a safetensors file read slice by slice: each device's part, and no array as a whole."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vkq_jax.sharding.hosts import array_from_shards

__all__ = ["digest_of_file", "outlines", "read_shards"]


def outlines(file: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each array of an open file, by name; a row of each is read.

    Args:
        file: from `open_safetensors`; so in the other functions.

    Raises:
        ValueError: JAX, as it is set, does not hold an array's dtype.
    """
    found = {}
    for name in file.keys():  # noqa: SIM118  # a file is no dict
        dtype = next(_rows(file, name)).dtype
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(f"{name} is {dtype}: set jax_enable_x64 to load it")
        found[name] = jax.ShapeDtypeStruct(tuple(file.get_slice(name).get_shape()), dtype)
    return found


def digest_of_file(file: Any, structure: str) -> str:
    """The checksum that `vkq_jax.save_cache` writes, with one row of an array in memory."""
    digest = hashlib.sha256(structure.encode())
    for name in sorted(file.keys()):
        rows = _rows(file, name)
        row = next(rows)
        shape = file.get_slice(name).get_shape()
        digest.update(json.dumps([name, str(row.dtype), shape]).encode())
        for part in itertools.chain([row], rows):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_shards(file: Any, name: str, sharding: jax.sharding.Sharding) -> jax.Array:
    """One array of an open file, of which each host reads the parts of its devices, each once."""
    entry = file.get_slice(name)
    shape = tuple(entry.get_shape())
    if not math.prod(shape) or not shape:
        entry = file.get_tensor(name)
    return array_from_shards(shape, sharding, lambda index: entry[index])


def _rows(file: Any, name: str) -> Iterator[np.ndarray]:
    """The array along its first axis, whose rows follow each other in the file."""
    entry = file.get_slice(name)
    shape = entry.get_shape()
    if not math.prod(shape) or not shape:
        yield file.get_tensor(name)
        return
    for row in range(shape[0]):
        yield entry[row : row + 1]
