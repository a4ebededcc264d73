"""A folder of safetensors files as one set of named tensors, read one at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # lets NumPy hold bfloat16, which safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

__all__ = ["Checkpoint", "TensorInfo", "read_json"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies, and what its file's header says of it (`dtype` as F32, BF16, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint(contextlib.ExitStack):
    """An opened checkpoint folder; a context manager that closes its files.

    Attributes:
        tensors: every stored tensor by name.
    """

    def __init__(self, folder: Path):
        """Reads the headers of the folder's one file, or of all shards that its index names.

        Raises:
            FileNotFoundError: no weights, or a shard is missing.
            ValueError: weights of another format, or a broken file.
        """
        super().__init__()
        self.tensors: dict[str, TensorInfo] = {}
        self._handles: dict[Path, Any] = {}
        with contextlib.ExitStack() as on_error:
            on_error.push(self)
            for file in _weight_files(folder):
                self._open(file)
            on_error.pop_all()

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """A copy of one tensor, or of some of its rows, in the dtype of the file."""
        handle = self._handles[self.tensors[name].file]
        return handle.get_tensor(name) if rows == slice(None) else handle.get_slice(name)[rows]

    def _open(self, file: Path) -> None:
        try:
            handle = self.enter_context(safe_open(file, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"{file} is truncated or no safetensors file: {error}") from error
        self._handles[file] = handle
        for name in handle.keys():  # noqa: SIM118  # a handle is no dict
            entry = handle.get_slice(name)
            info = TensorInfo(file, tuple(entry.get_shape()), entry.get_dtype())
            if name in self.tensors:
                raise ValueError(f"{name} is stored in {self.tensors[name].file} and in {file}")
            self.tensors[name] = info


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} should hold a JSON object, got {type(content).__name__}")
    return content


def _weight_files(folder: Path) -> Iterable[Path]:
    index = folder / _INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index} has no weight_map")
        files = sorted({folder / name for name in shards.values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"{index} names shards that are missing: {', '.join(missing)}")
        return files
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if found:
        raise FileNotFoundError(f"{index} is missing beside {', '.join(found)}")
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    if pickled:
        raise ValueError(
            f"{folder} has weights only as {', '.join(pickled)}; "
            f"convert them to safetensors (transformers' save_pretrained does)"
        )
    raise FileNotFoundError(f"{folder} has neither {_SINGLE} nor {_INDEX}")
