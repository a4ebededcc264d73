"""A folder for parts of a calibration, so that a killed run can go on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from models.attached_tables import ModelTables
from models.calibration.samples import CodeSamples
from models.checkpoints.foreign_errors import named
from vkq_jax.files.atomic_write import atomic_write
from vkq_jax.files.persistence import load_tables, save_tables
from vkq_jax.files.regular_file import open_safetensors
from vkq_jax.messages import show, show_path
from vkq_jax.settings.calibrated import CalibratedCodes, CalibratedPreset
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.sharding.hosts import of_first_host, to_host
from vkq_jax.validation import as_path

__all__ = ["CalibrationFolder", "digest_of"]


def digest_of(*parts: Any) -> str:
    """A digest of arrays, pytrees of arrays, and objects whose `repr` says all of them."""
    digest = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(part):
            if isinstance(leaf, jax.Array | np.ndarray):
                array = np.asarray(leaf)
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
            else:
                digest.update(repr(leaf).encode())
    return digest.hexdigest()[:32]


class CalibrationFolder:
    """Parts are kept by the digest of their inputs: parts of other inputs are not found.

    Each part is a file that appears whole or not at all.
    """

    def __init__(self, folder: str | os.PathLike[str] | None):
        """Uses the folder, which is made when it is needed; None keeps nothing.

        Raises:
            ValueError: a folder where there are several hosts, whose folders may differ.
        """
        if folder is not None and jax.process_count() > 1:
            raise ValueError(
                f"folder: expected None on {jax.process_count()} hosts, which would have to find "
                f"the same in theirs, got {show(str(folder))}"
            )
        self._folder = None if folder is None else as_path(folder)

    def samples(
        self, digest: str, make: Callable[[], tuple[CodeSamples, ...]]
    ) -> tuple[CodeSamples, ...]:
        """The samples of one batch, on the host: those that are kept, or else new ones."""
        file = self._file(f"samples-{digest}.safetensors")
        if file is not None and file.is_file():
            with _damaged(file), open_safetensors(file) as stored:
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                names = [field.name for field in dataclasses.fields(CodeSamples)]
                found = tuple(
                    CodeSamples(**{name: arrays[f"{kind}.{name}"] for name in names})
                    for kind in range(len(arrays) // len(names))
                )
                if (stored.metadata() or {}).get("digest") != digest_of(found):
                    raise ValueError("its arrays are not those that were written")
            return found
        made = of_first_host(jax.tree.map(to_host, make()))
        if file is not None:
            arrays = {
                f"{kind}.{field.name}": getattr(own, field.name)
                for kind, own in enumerate(made)
                for field in dataclasses.fields(CodeSamples)
            }
            with atomic_write(file) as part:
                save_file(arrays, part, metadata={"digest": digest_of(made)})
        return made

    def tables(
        self, digest: str, quant: KVQuantConfig, make: Callable[[], ModelTables]
    ) -> ModelTables:
        """The tables of one plan."""
        file = self._file(f"tables-{digest}.safetensors")
        if file is not None and file.is_file():
            with _damaged(file):
                tables = load_tables(file).presets[0].tables
                if tables is None:
                    raise ValueError("it has no tables")
            return tables
        tables = of_first_host(make())
        if file is not None:
            preset = CalibratedPreset(tables, None, name="", quant=quant)
            save_tables(file, CalibratedCodes((preset,), model=digest))
        return tables

    def numbers(self, digest: str, make: Callable[[], list[float]]) -> list[float]:
        """The effect of plans on one batch of judging prompts."""
        file = self._file(f"numbers-{digest}.json")
        if file is not None and file.is_file():
            with _damaged(file):
                found = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(found, list) or not all(type(x) is float for x in found):
                    raise ValueError("it holds no list of numbers")
            return found
        found = make()
        if file is not None:
            with atomic_write(file) as part:
                part.write_text(json.dumps(found), encoding="utf-8")
        return found

    def _file(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / name


def _damaged(file: Path) -> contextlib.AbstractContextManager[None]:
    """Names the file in errors of reading it."""
    return named(f"{show_path(file)} is damaged, delete it to have it made anew")
