"""A digest that tells one checkpoint from another."""

import hashlib
from pathlib import Path

import models

__all__ = ["checkpoint_digest"]


def checkpoint_digest(model: models.Model) -> str:
    """A digest of config.json and of all weights; the tables have digests of their own."""
    assert model.source is not None
    digest = hashlib.sha256((Path(model.source) / "config.json").read_bytes())
    digest.update(models.fingerprint(model).encode())
    return digest.hexdigest()[:16]
