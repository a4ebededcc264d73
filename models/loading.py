"""Models from Hugging Face checkpoint folders."""

import dataclasses
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from models.attached_tables import TABLES_FILE, attach_tables
from models.checkpoints.folder import Checkpoint
from models.checkpoints.foreign import (
    check_plain_weights,
    unsupported_files_reason,
    unsupported_model_type_reason,
    unsupported_weights_reason,
)
from models.checkpoints.hf_settings import errors_of, read_json
from models.checkpoints.location import TINY, check_path, find_folder
from models.checkpoints.memory import check_memory
from models.checkpoints.naming import WeightNames
from models.checkpoints.weights import (
    FLOATS,
    Problem,
    check_sizes,
    check_weights,
    read_weights,
    to_stored,
)
from models.families.base import ModelConfig
from models.families.mesh_fit import fit_mesh
from models.families.registry import FAMILY_NAMES, MODEL_TYPES, family_of
from models.generation.generation_config import read_sampling
from models.generation.special_tokens import with_special_tokens
from models.layers.layer_scan import restack_layers
from models.layers.linear import Maker
from models.model import Model
from models.sharding.rules import parameter_sharding
from models.text.sizes import table_sources
from vkq_jax.files.atomic_write import atomic_write, check_writable
from vkq_jax.messages import LONGEST, show, show_path, some
from vkq_jax.pytree import nbytes
from vkq_jax.validation import check_type, check_untraced

__all__ = ["TINY", "load", "read_config", "save_weights"]


def load(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.bfloat16,
    layers_apart: bool | None = None,
    mesh: str | Mesh | None = None,
) -> Model:
    """Loads an unmodified checkpoint folder of Hugging Face (config.json and safetensors).

    Args:
        path: the folder; the name of a model on the Hugging Face Hub, such as
            "llava-hf/llava-1.5-7b-hf", that lies in the local cache (`hf download NAME`; nothing is
            downloaded here); or "tiny" for the embedded checkpoint.
        dtype: float32, bfloat16 or float16 (float64 where JAX has it enabled), of parameters and
            computation, whatever that of the files. float16 needs an accelerator.
        layers_apart: see `Model.unstack_layers`; by default where the device is a GPU.
        mesh: devices to split the model over, as `data=2,model=4` or a `jax.sharding.Mesh` with
            these axes: sequences over `data`; heads, MLP channels, experts and the vocabulary over
            `model`. Each device gets its own part of the weights, and each host reads the parts of
            its devices alone. None: all on the default device.

    Raises:
        FileNotFoundError: the folder, its config.json, its weights or one of its shards is missing.
        MemoryError: the weights need more memory than the device has free.
        NotImplementedError: an architecture, or a setting of it, that this library does not have.
        ValueError: an argument of a wrong type, a broken file, settings that cannot be, weights
            that do not fit config.json, or that hold NaN or infinity, a mesh that does not
            divide the model, or a `vkq_tables.safetensors` in the folder that was made for another
            model.
    """
    dtype = _check_dtype(dtype)
    if layers_apart is not None and not isinstance(layers_apart, bool):
        raise ValueError(f"layers_apart: expected True, False or None, got {show(layers_apart)}")
    folder = find_folder(path)
    config = _read_config(folder)
    fitted = None if mesh is None else fit_mesh(mesh, config)
    family = family_of(config.model_type)
    checkpoint = Checkpoint(folder)
    names = _weight_names(config)
    keys = {names.canonical(key): key for key in checkpoint.tensors}
    if problems := check_sizes(names.sizes, keys, checkpoint):
        raise _misfit(folder, "config.json does not fit the weights", problems, checkpoint)
    if config.text.tie_word_embeddings and not _is_tied(checkpoint, keys):
        config = dataclasses.replace(
            config, text=dataclasses.replace(config.text, tie_word_embeddings=False)
        )
        names = _weight_names(config)
    module = nnx.eval_shape(
        lambda: family.build(config, Maker.create(nnx.Rngs(0), dtype, mesh=fitted))
    )
    graphdef, params = nnx.split(module)
    names = names.fitted(
        params, {name: checkpoint.tensors[key].shape for name, key in keys.items()}
    )
    if problems := check_weights(params, names.source, keys, checkpoint, names.is_unused):
        raise _misfit(folder, "weights do not fit config.json", problems, checkpoint)
    check_memory(folder, nbytes(params), fitted)
    with errors_of(folder):
        params = read_weights(
            params,
            names.source,
            keys,
            checkpoint,
            None if fitted is None else partial(parameter_sharding, mesh=fitted),
        )
    # Absolute, for the processor is read later, perhaps from another working directory.
    model = Model(
        params=params,
        graphdef=graphdef,
        config=config,
        source=str(folder.absolute()),
        mesh=fitted,
    )
    apart = jax.default_backend() == "gpu" if layers_apart is None else layers_apart
    model = model.unstack_layers() if apart else model
    tables = folder / TABLES_FILE
    return attach_tables(model, tables) if tables.is_file() else model


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The architecture's settings, without the weights; `path` as for `load`.

    Raises:
        FileNotFoundError: the folder or its config.json is missing.
        NotImplementedError: an architecture, or a setting of it, that this library does not have.
        ValueError: a broken config.json.
    """
    return _read_config(find_folder(path))


def save_weights(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes model.safetensors with Hugging Face's names, in the dtype of the parameters.

    config.json and the processor's files are the caller's. Vision layers that the model does not
    use are not written. A missing folder is made; the file appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
        ValueError: no model, one that is traced, or no place for a file.
    """
    check_type("model", model, Model, hint="models.load")
    check_untraced("model", model)
    file = Path(check_path(folder)) / "model.safetensors"
    check_writable(file)
    names = _weight_names(model.config)
    stored = to_stored(restack_layers(model.params), names.source)
    tensors = {names.to_published(name): tensor for name, tensor in stored.items()}
    with atomic_write(file) as part:
        save_file(tensors, part, metadata={"format": "pt"})


def _weight_names(config: ModelConfig) -> WeightNames:
    names = family_of(config.model_type).weights(config)
    return dataclasses.replace(names, special={**table_sources(config.text), **names.special})


def _check_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype that an argument stands for, if models compute in it here."""
    supported = ["float32", "bfloat16", "float16"] + ["float64"] * jax.config.jax_enable_x64
    try:
        # NumPy takes None for float64.
        name = "None" if dtype is None else jnp.dtype(dtype).name
    # NumPy parses strings, and fails on some with SyntaxError.
    except Exception:
        name = show(dtype)
    if name not in supported:
        raise ValueError(f"dtype: expected {', '.join(supported)}, got {name}")
    found = jnp.dtype(name)
    if found == jnp.float16 and jax.default_backend() == "cpu":
        raise ValueError(
            "dtype float16 does not run on a CPU, whose matrix products of float16 JAX cannot "
            "accumulate in float32: load with dtype=jnp.bfloat16 or jnp.float32"
        )
    return found


def _read_config(folder: Path) -> ModelConfig:
    file = folder / "config.json"
    if not file.is_file() and (known := unsupported_files_reason(folder)):
        raise FileNotFoundError(f"{show_path(file)} is missing: the folder {known}")
    inner = [] if file.is_file() else sorted(folder.glob("*/config.json"))
    if inner:
        found = some([each.parent.name for each in inner])
        raise FileNotFoundError(
            f"{show_path(file)} is missing: give one of the folders inside that have one: {found}"
        )
    content = read_json(file)
    model_type = content.get("model_type")
    if model_type not in MODEL_TYPES:
        hint = unsupported_model_type_reason(model_type)
        families = f"supported families: {', '.join(FAMILY_NAMES)} (see README.md)"
        raise NotImplementedError(
            f"{show_path(file)}: model_type={show(model_type)}; "
            + (f"this is {hint}" if hint else families)
        )
    check_plain_weights(folder, content)
    with errors_of(file):
        config = family_of(model_type).read_config(content)
    config = with_special_tokens(config, folder, content)
    sampling = read_sampling(folder, content, config.text.vocab_size)
    return dataclasses.replace(config, sampling=sampling)


def _misfit(
    folder: Path, summary: str, problems: list[Problem], checkpoint: Checkpoint
) -> ValueError:
    """One line: what does not fit, the first few by name, and what the checkpoint looks like."""
    kinds: dict[str, list[str]] = {}
    for kind, name, detail in problems:
        kinds.setdefault(kind, []).append(f"{name} ({detail})" if detail else name)
    text = f"{show_path(folder)}: {summary} ({len(problems)}): "
    known = unsupported_weights_reason(
        {name: info.dtype for name, info in checkpoint.tensors.items()},
        [problem.name for problem in problems if problem.kind == "unexpected"],
    )
    hint = f"; this looks like {known}" if known else ""
    for most, longest in ((3, 120), (2, 120), (1, 120), (1, 40), (1, 20)):
        parts = [f"{kind}: {some(names, most, longest)}" for kind, names in kinds.items()]
        if len(line := text + "; ".join(parts) + hint) <= LONGEST:
            break
    return ValueError(line)


def _is_tied(checkpoint: Checkpoint, keys: dict[str, str]) -> bool:
    """Whether the head is absent or the same as the embedding; files may hold another one."""
    head, table = keys.get("text.lm_head.weight"), keys.get("text.embed_tokens.weight")
    if head is None or table is None:
        return True
    (shape, dtype), (other, _) = (
        (info.shape, info.dtype) for info in (checkpoint.tensors[head], checkpoint.tensors[table])
    )
    # Anything but a matrix of floats is refused later, by name.
    if shape != other or len(shape) != 2 or dtype not in FLOATS:
        return False
    step = 4096  # rows at a time: both tables in full would double the largest tensor
    blocks = (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))
    return all(
        np.array_equal(checkpoint.read(head, rows), checkpoint.read(table, rows)) for rows in blocks
    )
