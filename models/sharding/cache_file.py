"""Caches read from their files to a mesh."""

import os
from collections.abc import Iterable
from typing import Any

from jax.sharding import Mesh

import vkq_jax
from models.sharding.axes import DATA, MODEL
from models.sharding.mesh import check_states, over_heads
from models.sharding.placing import cache_shardings, place_cache
from vkq_jax.cache.layered import AnyCache

__all__ = ["load_cache"]


def load_cache(
    path: str | os.PathLike[str], mesh: str | Mesh, *, types: Iterable[type] = ()
) -> AnyCache:
    """Reads a cache straight to a mesh: each host reads the parts of its own devices.

    No host has more than one part of one array in memory, and no device more than its sequences and
    KV heads. Devices that share a head each read it, then keep their parts of its sequence. To
    check that the file is whole, each host reads all of it once, a row at a time.

    Args:
        path: file written by `vkq_jax.save_cache`, on any mesh or none.
        mesh: `model.mesh`, for caches to go on with on that model; or `data=2,model=4` or a
            `jax.sharding.Mesh` with these axes, as for `models.load`.
        types: as for `vkq_jax.load_cache`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `vkq_jax.load_cache`, or a mesh that does not fit the cache's heads.
    """
    fitted: list[Mesh] = []

    def shardings(outline: Any) -> Any:
        if isinstance(mesh, Mesh) and mesh.axis_names == (DATA, *MODEL):
            fitted.append(mesh)
        else:
            fitted.append(over_heads(mesh, outline.num_kv_heads))
            check_states(fitted[0], outline)
        return cache_shardings(fitted[0], outline)

    cache = vkq_jax.load_cache(path, types=types, shardings=shardings)
    return place_cache(fitted[0], cache)
