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
    file = folder / "config.json"
    saved = file.read_text()
    meant = _meaning(folder)
    for _ in range(rng.randrange(4)):
        file.write_text(json.dumps(respelled(rng, json.loads(saved))))
        if _meaning(folder) == meant:
            return
    file.write_text(saved)


def _meaning(folder: Path) -> dict[str, Any] | None:
    """What transformers reads in config.json; None where it refuses the file."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).to_dict()
    except Exception:
        return None
