"""Digests that tell one checkpoint from another."""

import hashlib
from pathlib import Path

import models
from models.attached_tables import TABLES_FILE

__all__ = ["checkpoint_digest", "files_digest"]

_EDGE = 2**20


def checkpoint_digest(model: models.Model) -> str:
    """A digest of config.json and of all weights; the tables have digests of their own."""
    assert model.source is not None
    digest = hashlib.sha256((Path(model.source) / "config.json").read_bytes())
    digest.update(models.fingerprint(model).encode())
    return digest.hexdigest()[:16]


def files_digest(model: models.Model) -> str:
    """A digest of this host's config.json and of its weight files' names, sizes and ends.

    The ends are the first and last megabyte: a host reads no more than its own shards besides.
    `checkpoint_digest` reads the weights that all hosts hold together, and cannot tell whose
    files they come from.
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
