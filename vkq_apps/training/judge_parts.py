"""parts.safetensors of a judge: what was trained of it, and of which tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors import SafetensorError

from vkq_apps.training import checkpointing

__all__ = ["check_parts", "parts_info", "read_parts"]


def parts_info(parts: Path) -> dict[str, Any]:
    """What is known about trained parts: the steps, the adapters' rank, the tower's digest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of a judge.
    """
    try:
        info = checkpointing.read_info(parts)
    except (SafetensorError, KeyError, TypeError, ValueError):
        info = {}
    if not {"tower", "rank"} <= info.keys():
        raise ValueError(f"expected parts.safetensors of a judge, {parts} is something else")
    return info


def check_parts(parts: Path, info: dict[str, Any], tower: Path, digest: str) -> None:
    """Checks that parts were trained on the tower of this digest.

    Raises:
        ValueError: they were trained on another one.
    """
    if digest != info["tower"]:
        raise ValueError(
            f"--text-tower: {parts} was trained on another tower than {tower} "
            f"(digest {info['tower']}, not {digest})"
        )


def read_parts(parts: Path, like: nnx.State) -> nnx.State:
    """The trained parameters in float32, in the structure of `Judge.trained`.

    Raises:
        ValueError: the file's arrays are not those of `like`.
    """
    trained, _ = checkpointing.restore(parts, like)
    return jax.tree.map(lambda x: x.astype(jnp.float32), trained)
