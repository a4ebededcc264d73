"""A drawn checkpoint in one of the layouts that files of the hub have."""

import copy
import json
import random
from pathlib import Path
from typing import Any

__all__ = ["write_checkpoint"]

_NAMES = (
    {},  # those of the family's first files
    {"save_original_format": False},  # those of transformers' modules
    {"max_shard_size": "4KB"},
)


def write_checkpoint(rng: random.Random, model: Any, folder: Path) -> None:
    """Saved by transformers: old or new names, one file or several, config.json of 4 or of 5."""
    from transformers import AutoConfig

    model.save_pretrained(folder, **rng.choice(_NAMES))
    file = folder / "config.json"
    newer = file.read_text()
    older = _of_transformers_4(json.loads(newer))
    if older is None or rng.random() < 0.5:
        return
    before = AutoConfig.from_pretrained(folder).to_dict()
    file.write_text(json.dumps(older))
    if AutoConfig.from_pretrained(folder).to_dict() != before:
        file.write_text(newer)  # what the old names cannot say


def _of_transformers_4(config: dict[str, Any]) -> dict[str, Any] | None:
    """A config.json with RoPE in its earlier names; None where kinds of layers differ in it."""
    config = copy.deepcopy(config)
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    if "rope_type" not in rope:
        return None
    text["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        text["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if rope != {"rope_type": "default"}:
        text["rope_scaling"] = rope
    return config
