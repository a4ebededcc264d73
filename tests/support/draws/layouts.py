"""A drawn checkpoint in one of the layouts that files of the hub have."""

import json
import random
from pathlib import Path
from typing import Any

from tests.support.draws.spellings import respelled

__all__ = ["write_checkpoint"]

_NAMES = (
    {},  # those of the family's first files
    {"save_original_format": False},  # those of transformers' modules
    {"max_shard_size": "4KB"},
)


def write_checkpoint(rng: random.Random, model: Any, folder: Path) -> None:
    """Saved by transformers: old or new names, one file or several, config.json spelled anyhow."""
    model.save_pretrained(folder, **rng.choice(_NAMES))
    if rng.random() < 0.3:
        _halve(folder)
    # MllamaConfig has no such field, and its head is never tied.
    if rng.random() < 0.3 and getattr(model.config, "tie_word_embeddings", False):
        _add_head(folder)
    file = folder / "config.json"
    saved = file.read_text()
    meant = _meaning(folder)
    for _ in range(rng.randrange(4)):
        file.write_text(json.dumps(respelled(rng, json.loads(saved))))
        if _meaning(folder) == meant:
            return
    file.write_text(saved)


def _halve(folder: Path) -> None:
    """Stores weights as bfloat16, as most files of the hub do."""
    import torch
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        tensors = {name: x.to(torch.bfloat16) for name, x in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})


def _add_head(folder: Path) -> None:
    """Stores the tied head beside the embedding that it is."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith("embed_tokens.weight")]:
            head = "language_model." * name.startswith("language_model.") + "lm_head.weight"
            save_file(tensors | {head: tensors[name].clone()}, file, {"format": "pt"})
            index = folder / "model.safetensors.index.json"
            if index.is_file():
                content = json.loads(index.read_text())
                content["weight_map"][head] = file.name
                index.write_text(json.dumps(content))


def _meaning(folder: Path) -> dict[str, Any] | None:
    """The settings that transformers reads in config.json; None where it refuses the file."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).to_dict()
    except Exception:
        return None
