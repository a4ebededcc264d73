"""Training state in one file, replaced atomically."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vkq_jax.files.atomic_write import atomic_write

__all__ = ["read_info", "restore", "save"]


def save(file: Path, state: Any, info: dict[str, Any]) -> None:
    """Writes a pytree of arrays and some JSON; a kill leaves the old file or the new one."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    tensors = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    with atomic_write(file) as part:
        save_file(tensors, part, metadata={"info": json.dumps(info)})


def read_info(file: Path) -> dict[str, Any]:
    """The JSON of a saved state.

    Raises:
        FileNotFoundError: no such file.
    """
    with safe_open(file, framework="numpy") as stored:
        return json.loads(stored.metadata()["info"])


def restore(file: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state that `save` wrote, in the structure of `like`.

    Raises:
        ValueError: the file's arrays are not those of `like`.
    """
    with safe_open(file, framework="numpy") as stored:
        names = set(stored.keys())

        def read(path: Any, leaf: Any) -> jax.Array:
            name = jax.tree_util.keystr(path)
            if name not in names:
                raise ValueError(f"{file} has no {name}: it belongs to another model or optimizer")
            tensor = stored.get_tensor(name)
            if tensor.shape != leaf.shape:
                raise ValueError(f"{file}: {name} has {tensor.shape}, expected {leaf.shape}")
            return jax.device_put(tensor)

        state = jax.tree_util.tree_map_with_path(read, like)
    return state, read_info(file)
