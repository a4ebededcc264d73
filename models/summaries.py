"""Summaries of a model and of what it generated, see `vkq_jax.display`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from models.generation.generate import Generation
from models.layers.layer_scan import UnstackedParam
from models.model import Model
from vkq_jax.byte_units import human_bytes
from vkq_jax.display import describe_array, is_array, summarize
from vkq_jax.pytree import nbytes

__all__: list[str] = []


@summarize.register
def _(model: Model) -> dict[str, str] | None:
    leaves = jax.tree.leaves(model.params)
    text = model.config.text
    rows = {
        "family": model.config.model_type,
        "text tower": f"{text.num_hidden_layers} layers of {text.hidden_size} channels, "
        f"{text.num_attention_heads} query and {text.num_key_value_heads} KV heads of "
        f"{text.head_dim}",
    }
    if all(map(is_array, leaves)):
        count = sum(leaf.size for leaf in leaves) / 1e6
        dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        rows["parameters"] = f"{count:,.1f} M in {dtypes}, {human_bytes(nbytes(leaves))}"
    parts = jax.tree.leaves(model.params, is_leaf=lambda x: isinstance(x, UnstackedParam))
    if any(isinstance(part, UnstackedParam) for part in parts):
        rows["layers"] = "each in buffers of its own"
    if model.source is not None:
        rows["source"] = Path(model.source).name
    if model.calibrated is not None:
        rows["calibrated for"] = ", ".join(model.calibrated.codes.names)
    return rows


@summarize.register
def _(generation: Generation) -> dict[str, Any] | None:
    rows: dict[str, Any] = {"tokens": describe_array(generation.tokens)}
    lengths = generation.lengths
    known = isinstance(lengths, jax.Array) and not isinstance(lengths, Tracer)
    if known and not lengths.is_deleted():
        shown = np.asarray(lengths).ravel().tolist()
        rest = len(shown) - 8
        rows["lengths"] = ", ".join(map(str, shown[:8])) + (f" and {rest} more" if rest > 0 else "")
    return rows | {"cache": generation.cache}
