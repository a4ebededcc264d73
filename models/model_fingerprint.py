"""A model's fingerprint: what tables made for it are known by."""

import functools
import hashlib
import math
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.layers.layer_scan import UnstackedParam
from models.model import Model
from models.text.config import TextConfig
from models.text.sizes import table_rows
from vkq_jax.sharding.hosts import to_host
from vkq_jax.validation import check_type, check_untraced

__all__ = ["fingerprint"]

type Columns = tuple[int, int] | None

_CHUNK = 1 << 16
_TINY = 0x3700  # the bits of 2 ** -17 in bfloat16: smaller ones are none of float16
_known: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()


def fingerprint(model: Model) -> str:
    """16 hexadecimal digits of all weights, whatever their dtype, devices and layout.

    Weights count as they are in bfloat16. (float16 of a checkpoint in float32 is rounded twice and
    may have another fingerprint.) Where devices of several hosts hold them, all hosts call this
    together. A model's second call costs nothing.

    Args:
        model: from `models.load`.

    Raises:
        ValueError: no model, or one whose weights are traced by jit.
    """
    check_type("model", model, Model, hint="models.load")
    check_untraced("model", model)
    if model not in _known:
        digest = hashlib.sha256()
        leaves = jax.tree_util.tree_leaves_with_path(
            model.params, is_leaf=lambda x: isinstance(x, UnstackedParam)
        )
        for path, leaf in leaves:
            apart = isinstance(leaf, UnstackedParam)
            layers, lead = (leaf.layers, (len(leaf.layers),)) if apart else ((leaf,), ())
            for name, own, columns in _as_on_any_mesh(path, layers[0].shape, model.config.text):
                sums = [
                    _checksum(x, i * math.prod(own) % 2**32, columns) for i, x in enumerate(layers)
                ]
                digest.update(f"{name}{(*lead, *own)}{sum(sums) % 2**32}".encode())
        _known[model] = digest.hexdigest()[:16]
    return _known[model]


def _as_on_any_mesh(
    path: Any, shape: tuple[int, ...], text: TextConfig
) -> Iterator[tuple[str, tuple[int, ...], Columns]]:
    """Name, shape and columns that a parameter counts as; several where a mesh has several.

    Padding of a vocabulary on a mesh is zero, and zeros add nothing to a sum.
    """
    name = jax.tree_util.keystr(path)
    rows = table_rows(text).get(name.split("']['")[1]) if name.startswith("['text']") else None
    if rows is not None:
        yield name, (rows, *shape[1:]), None
    elif "['in_proj_qkv']" in name and text.linear is not None:
        for part, (start, stop) in sorted(text.linear.ranges.items()):
            own = name.replace("in_proj_qkv", f"in_proj_{part}")
            yield own, (*shape[:-1], stop - start), (start, stop)
    else:
        yield name, shape, None


def _checksum(x: jax.Array | np.ndarray, first: int, columns: Columns) -> int:
    """The sum modulo 2 ** 32 of each weight's hash by value and place, counted from `first`."""
    on_host = not isinstance(x, jax.Array) or (
        x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices())
    )
    if on_host:
        return _sum_on_host(np.asarray(x)[..., slice(*columns or (None,))], first)
    return int(to_host(_sum_on_devices(x, np.uint32(first), columns)))


@functools.partial(jax.jit, static_argnums=2)
def _sum_on_devices(x: jax.Array, first: Any, columns: Columns = None) -> jax.Array:
    """Reads the weights where they lie: a large model's would take long to fetch."""
    x = x[..., slice(*columns or (None,))]
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    place = first
    for axis in range(x.ndim):
        step = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * step
    chunk, place = place // np.uint32(_CHUNK), place % np.uint32(_CHUNK)
    hashes = _mixed(bits.astype(jnp.uint32)) * _odd(place) * _odd(chunk)
    return hashes.sum(dtype=jnp.uint32)


def _sum_on_host(x: np.ndarray, first: int) -> int:
    """The same in NumPy, which has nothing to compile for each shape."""
    flat, total, start = x.reshape(-1), 0, 0
    while start < flat.size:
        chunk, place = divmod((first + start) % 2**32, _CHUNK)
        bits = flat[start : start + _CHUNK - place].astype(jnp.bfloat16).view(np.uint16)
        factors = _factors()[place : place + len(bits)]
        hashes = _mixed(bits.astype(np.uint32)) * factors
        total += int(hashes.sum(dtype=np.uint32)) * int(_factors()[chunk])
        start += len(bits)
    return total % 2**32


@functools.cache
def _factors() -> np.ndarray:
    """An odd factor for each place of a chunk, and for each chunk."""
    return _odd(np.arange(_CHUNK, dtype=np.uint32))


def _mixed(bits: Any) -> Any:
    """Hashes of bfloat16 bits in uint32; +-0 and what float16 cannot hold are 0."""
    bits = bits * ((bits & np.uint32(0x7FFF)) > _TINY).astype(np.uint32) * np.uint32(0x9E3779B1)
    return bits ^ (bits >> np.uint32(15))


def _odd(place: Any) -> Any:
    """An odd factor of a place in uint32."""
    place = (place + np.uint32(1)) * np.uint32(0x85EBCA6B)
    return (place ^ (place >> np.uint32(13))) * np.uint32(0xC2B2AE35) | np.uint32(1)
