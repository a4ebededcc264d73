"""Models from Hugging Face checkpoint folders."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from models.calibrated import TABLES_FILE, attach_tables
from models.checkpoint import Checkpoint, read_json
from models.llava import params as llava_params
from models.llava.config import TEXT_TOWERS, VISION_TOWERS, LlavaConfig
from models.llava.model import LlavaModel
from models.model import Model
from models.stacks import put_together
from models.weights import check_weights, read_weights, to_stored

__all__ = ["TINY", "load", "read_config", "save_weights"]

TINY = Path(__file__).parent / "tiny_checkpoint"
"""The embedded checkpoint's folder."""


def load(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.bfloat16,
    layers_apart: bool | None = None,
) -> Model:
    """Loads an unmodified checkpoint folder of Hugging Face (config.json and safetensors).

    Args:
        path: the folder, or "tiny" for the embedded checkpoint.
        dtype: of parameters and computation, whatever that of the files.
        layers_apart: see `Model.take_apart`; by default where the device is a GPU.

    Raises:
        FileNotFoundError: the folder, its config.json, its weights or one of its shards is missing.
        NotImplementedError: an architecture, or a setting of it, that this library does not have.
        ValueError: a broken file, weights that do not fit config.json, or a
            `vkq_tables.safetensors` in the folder that was made for another model.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating type, got {jnp.dtype(dtype)}")
    folder = _find(path)
    config = _read_config(folder)
    with Checkpoint(folder) as checkpoint:
        keys = {llava_params.canonical(key): key for key in checkpoint.tensors}
        if config.text.tied_head and not _is_tied(checkpoint, keys):
            config = dataclasses.replace(
                config, text=dataclasses.replace(config.text, tied_head=False)
            )
        module = nnx.eval_shape(lambda: LlavaModel(config, rngs=nnx.Rngs(0), dtype=dtype))
        graphdef, params = nnx.split(module)
        problems = check_weights(
            params,
            llava_params.source,
            keys,
            checkpoint,
            lambda name: llava_params.is_unused(name, config),
        )
        if problems:
            raise ValueError(
                f"{folder}: {len(problems)} weights do not fit config.json:\n" + "\n".join(problems)
            )
        params = read_weights(params, llava_params.source, keys, checkpoint)
    model = Model(params=params, graphdef=graphdef, config=config, source=str(folder.absolute()))
    apart = jax.default_backend() == "gpu" if layers_apart is None else layers_apart
    model = model.take_apart() if apart else model
    tables = folder / TABLES_FILE
    return attach_tables(model, tables) if tables.is_file() else model


def read_config(path: str | os.PathLike[str]) -> LlavaConfig:
    """The architecture's settings in a checkpoint folder, or of "tiny", without the weights.

    Raises:
        FileNotFoundError: the folder or its config.json is missing.
        NotImplementedError: an architecture, or a setting of it, that this library does not have.
        ValueError: a broken config.json.
    """
    return _read_config(_find(path))


def save_weights(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes model.safetensors with Hugging Face's names, in the dtype of the parameters.

    config.json and the processor's files are the caller's. Vision layers that the model does not
    use are not written.
    """
    stored = to_stored(put_together(model.params), llava_params.source)
    tensors = {llava_params.published(name): tensor for name, tensor in stored.items()}
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def _find(path: str | os.PathLike[str]) -> Path:
    folder = TINY if path == "tiny" else Path(path)
    if not folder.is_dir():
        embedded = "; the embedded checkpoint is not part of this copy" if path == "tiny" else ""
        raise FileNotFoundError(f"checkpoint folder {folder} does not exist{embedded}")
    return folder


def _read_config(folder: Path) -> LlavaConfig:
    # Here and not above, because this import takes seconds.
    from transformers import LlavaConfig as HfLlavaConfig

    content = read_json(folder / "config.json")
    family = content.get("model_type")
    if family != "llava":
        raise NotImplementedError(
            f"{folder / 'config.json'}: model_type={family!r}; supported: 'llava'"
        )
    _check_towers(content)
    try:
        hf = HfLlavaConfig.from_dict(content)
    # transformers validates with exceptions of many types.
    except Exception as error:
        raise ValueError(f"{folder / 'config.json'} is not valid: {error}") from error
    config = LlavaConfig.from_hf(hf)
    generation = folder / "generation_config.json"
    eos = read_json(generation).get("eos_token_id") if generation.is_file() else None
    if eos is None:
        return config
    return dataclasses.replace(config, eos_token_ids=tuple([eos] if isinstance(eos, int) else eos))


def _check_towers(content: dict[str, Any]) -> None:
    """Refuses other towers by name before transformers fails on those that it does not know."""
    for tower, supported in (("text_config", TEXT_TOWERS), ("vision_config", VISION_TOWERS)):
        settings, default = content.get(tower), supported[0]
        found = settings.get("model_type", default) if isinstance(settings, dict) else default
        if found not in supported:
            known = ", ".join(map(repr, supported))
            raise NotImplementedError(f"{tower}.model_type={found!r}; supported: {known}")


def _is_tied(checkpoint: Checkpoint, keys: dict[str, str]) -> bool:
    """Whether the head is absent or the same as the embedding; files may hold another one."""
    head, table = keys.get("head.weight"), keys.get("text.embed_tokens.weight")
    if head is None or table is None:
        return True
    shape = checkpoint.tensors[head].shape
    if shape != checkpoint.tensors[table].shape:
        return False
    step = 4096  # rows at a time: both tables in full would double the largest tensor
    blocks = (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))
    return all(
        np.array_equal(checkpoint.read(head, rows), checkpoint.read(table, rows)) for rows in blocks
    )
