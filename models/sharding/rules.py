"""Rules of sharding by the logical axes of parameters, the same for all families.

A parameter that no rule names is on every device in full: norms, routers, vision towers and
projectors, which are small beside a text decoder. Pictures are split over the devices instead.
"""

import re
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.sharding.axes import KV_HEADS, MODEL

__all__ = ["parameter_sharding"]

type MeshAxes = str | tuple[str, ...] | None

_RULES: dict[str, MeshAxes] = {
    "layers": None,
    "vocab": MODEL,
    "heads": MODEL,
    "kv_heads": KV_HEADS,
    "state_heads": MODEL,
    "mlp": MODEL,
    "experts": MODEL,
    "expert_mlp": None,
    "embed": None,
    "tokens": None,
    "channels_of_layers": MODEL,
}
"""Mesh axes of each logical axis: the one place that says what is split."""

_BLOCK = r"text\.(?:\w+_)?layers\."
_ATTENTION = _BLOCK + r"(?:self_attn|cross_attn)\."
_STATES = _BLOCK + r"linear_attn\."
_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"text\.(embed_tokens|lm_head)\.weight", ("vocab", "embed")),
    (r"text\.per_layer\.embed_tokens_per_layer\.weight", ("tokens", "channels_of_layers")),
    (r"text\.per_layer\.per_layer_model_projection\.kernel", ("embed", "channels_of_layers")),
    (_ATTENTION + r"q_proj\.kernel", ("layers", "embed", "heads")),
    (_ATTENTION + r"q_proj\.bias", ("layers", "heads")),
    (_ATTENTION + r"[kv]_proj\.kernel", ("layers", "embed", "kv_heads")),
    (_ATTENTION + r"[kv]_proj\.bias", ("layers", "kv_heads")),
    (_ATTENTION + r"o_proj\.kernel", ("layers", "heads", "embed")),
    (_STATES + r"in_proj_[qkvzab]\.kernel", ("layers", "embed", "state_heads")),
    (_STATES + r"(conv1d_[qkv]\.weight|dt_bias|A_log)", ("layers", "state_heads")),
    (_STATES + r"out_proj\.kernel", ("layers", "state_heads", "embed")),
    (_BLOCK + r"mlp\.(gate|up)_proj\.kernel", ("layers", "embed", "mlp")),
    (_BLOCK + r"mlp\.(gate|up)_proj\.bias", ("layers", "mlp")),
    (_BLOCK + r"mlp\.down_proj\.kernel", ("layers", "mlp", "embed")),
    (_BLOCK + r"(?:mlp\.)?experts\.(gate|up)_proj", ("layers", "experts", "embed", "expert_mlp")),
    (_BLOCK + r"(?:mlp\.)?experts\.down_proj", ("layers", "experts", "expert_mlp", "embed")),
)
"""Logical axes of the parameters that are split, by their path in the module."""


def parameter_sharding(path: tuple[Any, ...], mesh: Mesh) -> NamedSharding:
    """How the parameter at a path of the module lies on a mesh from `fit_mesh`."""
    name = ".".join(map(str, path))
    logical = next((axes for rule, axes in _AXES if re.fullmatch(rule, name)), ())
    return NamedSharding(mesh, PartitionSpec(*(_RULES[axis] for axis in logical)))
