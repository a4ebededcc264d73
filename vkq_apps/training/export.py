"""Writes a trained model as a Hugging Face LLaVA checkpoint in bfloat16.

python -m vkq_apps.training.export runs/tiny/state.safetensors models/tiny_checkpoint
python -m vkq_apps.training.export runs/judge/parts.safetensors JUDGE --text-tower FOLDER_OR_GGUF

The second puts the trained parts of a judge and the tower that they were trained on together.
"""

from __future__ import annotations

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.training.export")

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from models.checkpoints.weights import to_stored
from models.families.llava.config import LlavaConfig
from models.families.registry import family_of
from vkq_apps.terminal.standalone import argument, option, run_standalone
from vkq_apps.training import checkpointing
from vkq_apps.training.judge_export import export_judge
from vkq_apps.training.model import ModelSize, create_model, hf_config
from vkq_apps.training.optimizer import Schedule
from vkq_apps.training.processor import save_processor, write_json
from vkq_apps.training.step import initial_state
from vkq_apps.training.tokenizer import BOS, EOS, PAD

__all__ = ["export", "export_state", "stored_weights"]

_CARD = Path(__file__).parent / "model_card.md"
_SHARD_BYTES = 14 * 2**20


def export(params: Any, size: ModelSize, folder: Path) -> None:
    """Writes weights, configuration, tokenizer, processor and model card.

    Args:
        params: of a `TrainedModel`; the auxiliary head is left out.
        size: the model's.
        folder: made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_shards(stored_weights(params, size), folder)
    write_json(folder / "config.json", hf_config(size))
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}
    write_json(folder / "generation_config.json", generation)
    save_processor(folder)
    shutil.copyfile(_CARD, folder / "README.md")


def export_state(file: Path, folder: Path) -> dict[str, Any]:
    """`export` of a state that training saved; returns its `info`."""
    info = checkpointing.read_info(file)
    size = ModelSize(**info["size"])
    _, params = create_model(size, 0)
    state, _ = checkpointing.restore(file, initial_state(params, Schedule(info["steps"])))
    export(state.params, size, folder)
    return info


def stored_weights(params: Any, size: ModelSize) -> dict[str, np.ndarray]:
    """bfloat16 tensors by their Hugging Face names."""
    config = LlavaConfig.from_hf(hf_config(size))
    names = family_of(config.model_type).weights(config)
    rounded: nnx.State = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params["llava"])
    stored = to_stored(rounded, names.source)
    # The norm of the pooled output, which LLaVA does not use; there so that nothing is missing.
    stored["vision.post_layernorm.weight"] = np.ones(size.width, ml_dtypes.bfloat16)
    stored["vision.post_layernorm.bias"] = np.zeros(size.width, ml_dtypes.bfloat16)
    return {names.to_published(name): tensor for name, tensor in stored.items()}


def _save_shards(tensors: dict[str, np.ndarray], folder: Path) -> None:
    """Fewest files of at most `_SHARD_BYTES`, in the order of the names, and their index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        assert tensor.dtype == ml_dtypes.bfloat16
        if filled + tensor.nbytes > _SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """The command line of the export."""

    state: Path = argument(help="state.safetensors of a training, or parts.safetensors of a judge.")
    folder: Path = argument(help="Checkpoint folder to write.")
    text_tower: Path | None = option(
        None, help="The text tower that a judge was trained on.", metavar="PATH"
    )


def run(options: ExportOptions) -> None:
    """Writes the checkpoint, and one line of JSON about it."""
    if options.text_tower is not None:
        info = export_judge(options.state, options.folder, options.text_tower)
    else:
        info = export_state(options.state, options.folder)
    print(json.dumps({"step": info["step"], "of": info["steps"], "folder": str(options.folder)}))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = "vkq_apps.training.export"
    return run_standalone(ExportOptions, run, module=module, help=__doc__, arguments=arguments)
