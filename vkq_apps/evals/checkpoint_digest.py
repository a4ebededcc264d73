"""A digest that tells the files of one checkpoint from those of another."""

import hashlib
from pathlib import Path

from models import Model
from models.calibration.attached import TABLES_FILE

__all__ = ["checkpoint_digest"]

_EDGE = 2**20


def checkpoint_digest(model: Model) -> str:
    """A digest of config.json and of the weights' names, sizes, first and last megabytes.

    `model` is from `models.load`.

    Reading all of a large checkpoint would take longer than a small evaluation. Unlike
    `models.fingerprint`, which tables are known by, it covers the vision tower, too; the tables
    themselves have digests of their own.
    """
    assert model.source is not None
    folder, digest = Path(model.source), hashlib.sha256()
    digest.update((folder / "config.json").read_bytes())
    for path in sorted(set(folder.glob("*.safetensors")) - {folder / TABLES_FILE}):
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]
