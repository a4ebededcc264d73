"""Arrays that lie on the devices of several hosts, each with one process of `jax.distributed`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["array_from_shards", "of_first_host", "spans_hosts", "to_host"]


def spans_hosts(tree: Any) -> bool:
    """Whether any array of a pytree lies in part on devices of other hosts."""
    leaves = jax.tree.leaves(tree)
    return any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves)


def to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array in NumPy; where it lies on several hosts, all of them call this together."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def of_first_host[T](tree: T) -> T:
    """A pytree of arrays as the first host has it, which all hosts call with the same shapes.

    Hosts that compute the same may round otherwise. On one host the tree itself comes back.
    """
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def array_from_shards(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    part: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """An array from its parts, each made once and sent to all its devices before the next one.

    Args:
        shape: of the whole array.
        sharding: how it lies on devices, also of other hosts, whose parts these make.
        part: the values at an index, whose slices have a start and a stop.
    """
    devices_of: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        own = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
        devices_of.setdefault(own, []).append(device)
    shards = []
    for own, devices in devices_of.items():
        values = part(tuple(slice(start, stop) for start, stop in own))
        shards += jax.block_until_ready([jax.device_put(values, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)
