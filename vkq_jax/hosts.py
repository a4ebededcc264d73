"""Arrays that lie on the devices of several hosts, each with one process of `jax.distributed`."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["spans_hosts", "to_host"]


def spans_hosts(tree: Any) -> bool:
    """Whether any array of a pytree lies in part on devices of other hosts."""
    leaves = jax.tree.leaves(tree)
    return any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves)


def to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array in NumPy; where it lies on several hosts, all of them call this together."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
