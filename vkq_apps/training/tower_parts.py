"""A GGUF's text tower in parts, for a machine that takes small uploads and has no network.

    uv run --group parity --with gguf --with accelerate \
        python -m vkq_apps.training.tower_parts TOWER.gguf FOLDER --megabytes 30

Each part holds blocks as the GGUF has them, and of the vocabulary's tables the rows that the recipe
uses. `--text-tower FOLDER` reads the folder once all parts are in it, with the package gguf alone,
which is pure Python.
"""

from __future__ import annotations

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.training.tower_parts")

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from models.checkpoints.foreign_errors import named
from vkq_apps.terminal.standalone import argument, option, run_standalone
from vkq_apps.training.gguf_files import gguf_tensors, read_gguf_settings
from vkq_apps.training.processor import write_json
from vkq_apps.training.used_vocabulary import recipe_texts, used_vocabulary
from vkq_jax.files.atomic_write import atomic_write
from vkq_jax.messages import show_path, some

__all__ = ["Blocks", "has_parts", "read_parts", "save_parts"]

_PARTS = "part-*.safetensors"


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A tensor as a GGUF file has it: bytes [rows, bytes of a row] of a type, or plain floats."""

    data: np.ndarray
    type: str

    def floats(self) -> np.ndarray:
        """The tensor in float32."""
        if self.type in ("F32", "F16"):
            return self.data.astype(np.float32)
        try:
            from gguf import GGMLQuantizationType, quants  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(f"--text-tower: parts of a GGUF file need gguf: {error}") from error
        return quants.dequantize(self.data, GGMLQuantizationType[self.type])


def has_parts(folder: Path) -> bool:
    """Whether a folder holds parts of a tower."""
    return any(folder.glob(_PARTS))


def save_parts(tensors: Mapping[str, Blocks], folder: Path, most: int) -> list[Path]:
    """Writes tensors into files of about `most` bytes at most; returns the files.

    Raises:
        ValueError: a tensor is larger than that.
    """
    files: list[dict[str, Blocks]] = []
    room: list[int] = []
    for name, blocks in sorted(tensors.items(), key=lambda item: -item[1].data.nbytes):
        needed = blocks.data.nbytes + 256  # with its entry in the header
        if needed > most:
            raise ValueError(f"--megabytes: expected room for {name} of {needed} bytes, got {most}")
        place = next((i for i, left in enumerate(room) if left >= needed), len(files))
        if place == len(files):
            files.append({})
            room.append(most - 256)
        files[place][name] = blocks
        room[place] -= needed
    written = []
    for number, held in enumerate(files, 1):
        written.append(folder / f"part-{number:03d}-of-{len(files):03d}.safetensors")
        types = json.dumps({name: blocks.type for name, blocks in held.items()})
        with atomic_write(written[-1]) as part:
            save_file({name: b.data for name, b in held.items()}, part, metadata={"types": types})
    return written


def read_parts(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of all parts by name, in float32.

    Raises:
        ValueError: a part is missing, broken, or of another tower.
    """
    files = sorted(folder.glob(_PARTS))
    end = files[0].stem.rpartition("-of-")[2]
    total = int(end) if end.isdecimal() else 0
    if len(files) != total or not all(file.stem.endswith(f"-of-{end}") for file in files):
        raise ValueError(
            f"--text-tower: expected {total} parts of one tower in {show_path(folder)}, got "
            f"{some([file.name for file in files])}"
        )
    tensors = {}
    for file in files:
        broken = named(f"--text-tower: cannot read {show_path(file)}")
        with broken, safe_open(file, framework="numpy") as stored:
            for name, kind in json.loads(stored.metadata()["types"]).items():
                tensors[name] = Blocks(stored.get_tensor(name), kind).floats()
    return tensors


def _read_blocks(file: Path, rows: list[int], config: Any) -> dict[str, Blocks]:
    """The tensors of a GGUF file by the names of Hugging Face's files."""
    tensors = {}
    for name, tensor in gguf_tensors(file, config).items():
        data = np.asarray(tensor.data)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            data = data[rows]
        elif config.model_type.startswith("gemma") and name.endswith("norm.weight"):
            data = data - 1  # the file has what the norm multiplies by
        tensors[name] = Blocks(np.ascontiguousarray(data), tensor.tensor_type.name)
    return tensors


@dataclasses.dataclass(frozen=True)
class PartsOptions:
    """The command line of the parts."""

    gguf: Path = argument(help="GGUF file of a text model.")
    folder: Path = argument(help="Folder to write.")
    megabytes: float = option(30.0, help="Most of one part.", min=1.0)


def run(options: PartsOptions) -> None:
    """Writes the parts and the files beside them."""
    config, tokenizer = read_gguf_settings(options.gguf)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    keep = tuple(dict.fromkeys((tokenizer.eos_token, tokenizer.pad_token or tokenizer.eos_token)))
    reduced, rows = used_vocabulary(content, recipe_texts(), keep)
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = config.to_dict() | {"vocab_size": len(rows)}
    settings.pop("quantization_config", None)
    write_json(options.folder / "config.json", settings)
    write_json(options.folder / "tokenizer.json", reduced)
    tokens = ("bos_token", "eos_token", "pad_token")
    known = {name: getattr(tokenizer, name) for name in tokens}
    write_json(options.folder / "tokenizer_config.json", known)
    blocks = _read_blocks(options.gguf, rows, config)
    for file in save_parts(blocks, options.folder, int(1e6 * options.megabytes)):
        print(file, file.stat().st_size)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = "vkq_apps.training.tower_parts"
    return run_standalone(PartsOptions, run, module=module, help=__doc__, arguments=arguments)
