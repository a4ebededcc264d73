"""A folder of safetensors files as one set of named tensors, mapped into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from models.checkpoints.foreign import unsupported_files_reason
from models.checkpoints.hf_settings import Settings, errors_of, read_json
from vkq_jax.files.regular_file import open_regular, open_safetensors
from vkq_jax.messages import show, show_name, show_path, some
from vkq_jax.validation import check_readable

__all__ = ["Checkpoint", "TensorInfo"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    **{f"{kind.upper()}{8 * size}": f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
    "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies, and what its file's header says of it (`dtype` as F32, BF16, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """A checkpoint folder, whose files are mapped into memory.

    Attributes:
        tensors: every stored tensor by name.
    """

    def __init__(self, folder: Path):
        """Reads the headers of model.safetensors, or else of all shards that the index names.

        With both in the folder the index is not looked at, as in transformers.

        Raises:
            FileNotFoundError: no weights, or a shard is missing.
            ValueError: weights of another format, or a broken file.
        """
        self.tensors: dict[str, TensorInfo] = {}
        self._mapped: dict[Path, _MappedFile] = {}
        single = folder / _SINGLE
        shard_of = {} if single.is_file() else _read_index(folder)
        for file in sorted(set(shard_of.values())) or [single]:
            self._open(file, shard_of)

    def read(self, name: str, *index: slice) -> np.ndarray:
        """One tensor, or a slice of its first axes, in the dtype of the file.

        It is a view of the mapped file: no more than the slice is read, once it is used, and
        several threads read at a time. The file must not be written over while a view lives, but
        another one may take its place.

        Raises:
            ValueError: a dtype that NumPy does not have, or a file that was written to meanwhile.
        """
        info = self.tensors[name]
        if info.dtype not in _DTYPES:
            raise ValueError(
                f"{show_name(name)} has dtype {info.dtype}: expected one of {', '.join(_DTYPES)}"
            )
        return self._mapped[info.file].read(name)[index]

    def check_unchanged(self) -> None:
        """Raises ValueError where a file was written to since its header was read."""
        for mapped in self._mapped.values():
            mapped.check_unchanged()

    def _open(self, file: Path, shard_of: Mapping[str, Path]) -> None:
        check_readable(file)
        try:
            state = _state(file)  # before the library looks: whatever comes later is noticed
            with open_safetensors(file):
                self._mapped[file] = mapped = _MappedFile(file, state)
        except (SafetensorError, ValueError, OSError) as error:
            raise ValueError(_broken(file, error)) from error
        for name, info in mapped.tensors.items():
            earlier = self.tensors.get(name)
            if earlier is not None and shard_of.get(name) not in (earlier.file, file):
                raise ValueError(
                    f"{show_name(name)} is stored in {show_path(earlier.file)} and in {file.name}"
                )
            if earlier is None or shard_of[name] == file:
                self.tensors[name] = info


class _MappedFile:
    """A safetensors file, whose header the library has checked, in memory as it lies on disk.

    The library itself copies each tensor, and under Python's lock: several threads gain nothing.
    """

    def __init__(self, file: Path, state: tuple[int, ...]):
        self._file, self._state = file, state
        with open_regular(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        self._starts = {name: 8 + length + each["data_offsets"][0] for name, each in header.items()}
        self.tensors = {
            name: TensorInfo(file, tuple(each["shape"]), each["dtype"])
            for name, each in header.items()
        }

    def read(self, name: str) -> np.ndarray:
        """A tensor in the file, not to be written to."""
        self.check_unchanged()  # reading a mapped page behind the end of a file kills the process
        info, start = self.tensors[name], self._starts[name]
        flat = np.frombuffer(self._map, _DTYPES[info.dtype], math.prod(info.shape), start)
        return flat.reshape(info.shape)

    def check_unchanged(self) -> None:
        """Raises ValueError where the file was written to; one that was replaced lives on here."""
        with contextlib.suppress(OSError):
            now = _state(self._file)
            if now != self._state and now[:2] == self._state[:2]:
                raise ValueError(
                    f"{show_path(self._file)} was written to while it was read: load the model "
                    "again once the file is complete"
                )


def _state(file: Path) -> tuple[int, ...]:
    """Device and number of a file, and what writing to it changes."""
    stat = os.stat(file)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@dataclasses.dataclass(frozen=True)
class _Index(Settings):
    weight_map: dict[str, Any]


def _read_index(folder: Path) -> dict[str, Path]:
    """The shard of each tensor."""
    index = folder / _INDEX
    if not index.is_file():
        raise _no_weights(folder)
    content = read_json(index)
    with errors_of(index):
        shards = _Index.read(content).weight_map
        if not shards:
            raise ValueError("weight_map is empty")
        for tensor, shard in shards.items():
            if not isinstance(shard, str) or _leaves_folder(shard):
                raise ValueError(
                    f"weight_map: expected a file of this folder for {show(tensor)}, "
                    f"got {show(shard)}"
                )
    files = {tensor: folder / shard for tensor, shard in shards.items()}
    # pathlib's is_file raises for some impossible names.
    missing = sorted({file.name for file in files.values() if not os.path.isfile(file)})
    if missing:
        raise FileNotFoundError(
            f"{show_path(index)} names shards that are missing: {some(missing)}"
        )
    return files


def _leaves_folder(shard: str) -> bool:
    path = PurePosixPath(shard.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in shard


def _broken(file: Path, error: Exception) -> str:
    """The reason why a file is no safetensors file."""
    with contextlib.suppress(OSError, ValueError), open_regular(file) as stream:
        if stream.read(64).startswith(b"version https://git-lfs"):
            return f"{show_path(file)} is only a pointer to the weights: run `git lfs pull`"
    if isinstance(error, OSError) and error.strerror:
        return f"{show_path(file)} cannot be read: {error.strerror}"
    return f"{show_path(file)} is truncated or no safetensors file: {show_name(str(error))}"


def _no_weights(folder: Path) -> Exception:
    """The error for a folder without weights that can be read."""
    if known := unsupported_files_reason(folder):
        return ValueError(f"{show_path(folder)} {known}")
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    if shards:
        return FileNotFoundError(
            f"{show_path(folder / _INDEX)} is missing beside {some(shards)}; "
            f"a single file has to be called {_SINGLE}"
        )
    return FileNotFoundError(f"{show_path(folder)} has neither {_SINGLE} nor {_INDEX}")
