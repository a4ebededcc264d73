"""Writes a trained judge as a Hugging Face LLaVA checkpoint in bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
from safetensors.numpy import save_file

import models
from models.checkpoints.folder import Checkpoint
from models.checkpoints.weights import to_stored
from models.families.registry import family_of
from vkq_apps.training.judge import Judge, merged
from vkq_apps.training.judge_checkpoint import read_digest, write_start
from vkq_apps.training.judge_parts import check_parts, parts_info, read_parts
from vkq_apps.training.text_tower import read_tower
from vkq_jax.files.atomic_write import atomic_write

__all__ = ["export_judge"]


def export_judge(parts: Path, folder: Path, tower: Path) -> dict[str, Any]:
    """Puts trained parts and the tower that they belong to together; returns the parts' `info`.

    Args:
        parts: parts.safetensors of a training.
        folder: to write; it appears when it is complete.
        tower: folder or GGUF file.

    Raises:
        FileNotFoundError: there are no such parts.
        ValueError: the folder exists, the file is none of a judge, or its parts belong to another
            tower.
    """
    if folder.exists():
        raise ValueError(f"expected a new folder to write the judge to, {folder} exists")
    info = parts_info(parts)
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write_start(read_tower(tower), unfinished)
        check_parts(parts, info, tower, read_digest(unfinished))
        _put_in(parts, info["rank"], unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return info


def _put_in(parts: Path, rank: int, folder: Path) -> None:
    """The checkpoint before training becomes that after it."""
    model = models.load(folder, dtype=jnp.float32, layers_apart=False)
    trained = read_parts(parts, Judge(model, rank, ()).trained)
    names = family_of(model.config.model_type).weights(model.config)
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    for name, tensor in to_stored(merged(model, trained).params, names.source).items():
        tensors[names.to_published(name)] = tensor.astype(ml_dtypes.bfloat16)
    with atomic_write(folder / "model.safetensors") as part:  # whose tensors some still are
        save_file(tensors, part, metadata={"format": "pt"})
