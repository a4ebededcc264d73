"""A model's fingerprint: what tables made for it are known by."""

import hashlib

import jax
import jax.numpy as jnp

from models.layers.layer_scan import UnstackedParam
from models.model import Model
from vkq_jax.hosts import to_host

__all__ = ["fingerprint"]

_ROWS = 64  # of each weight: enough to tell models apart, little to read back from a device


def fingerprint(model: Model) -> str:
    """16 hexadecimal digits of the text tower's weights, the same in every dtype.

    The first rows of every parameter of the first and the last decoder block count, rounded to
    bfloat16.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(
        model.params, is_leaf=lambda x: isinstance(x, UnstackedParam)
    )
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if "['text']['layers']" not in name:
            continue
        blocks = leaf.layers if isinstance(leaf, UnstackedParam) else leaf
        for block in (blocks[0], blocks[-1]):
            rows = to_host(block[:_ROWS].astype(jnp.bfloat16))
            digest.update(f"{name}{block.shape}".encode())
            digest.update(rows.tobytes())
    return digest.hexdigest()[:16]
