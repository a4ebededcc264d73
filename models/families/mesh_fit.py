"""The mesh of a model: whether its axis `model` fits the sizes of the text decoder."""

import math

from jax.sharding import Mesh

from models.families.base import ModelConfig
from models.sharding.mesh import check_heads, divisors, make_mesh, over_heads
from models.text.coded_layers import coded_layers

__all__ = ["check_fit", "fit_mesh"]


def fit_mesh(mesh: str | Mesh, config: ModelConfig) -> Mesh:
    """The mesh for a model: its axis `model` in two, `KV_HEADS` and `GROUP`.

    Raises:
        ValueError: as `check_fit` and `make_mesh`.
    """
    plain = make_mesh(mesh)
    check_fit(plain.shape["model"], config)
    return over_heads(plain, _kv_heads(config))


def check_fit(parts: int, config: ModelConfig) -> None:
    """Checks that a model can be split over `parts` devices of the axis `model`; asks no device.

    Raises:
        ValueError: a size of the text decoder that `parts` does not divide.
    """
    text = config.text
    sizes = {"num_attention_heads": text.num_attention_heads}
    if text.moe is None or text.dense_layers:
        sizes["intermediate_size"] = text.intermediate_size
    for moe in (text.moe, text.moe_beside_mlp):
        if moe is not None:
            sizes["num_experts"] = moe.num_experts
    if text.linear is not None:
        sizes["linear_num_key_heads"] = text.linear.num_key_heads
    for name, size in sizes.items():
        if size % parts:
            raise ValueError(
                f"mesh axis model={parts} does not divide {name}={size}: use one of "
                f"{divisors(math.gcd(*sizes.values()))}"
            )
    check_heads(parts, _kv_heads(config))


def _kv_heads(config: ModelConfig) -> int:
    """Layers with other heads share the mesh: it splits what divides the heads of all."""
    return math.gcd(*(kind.num_kv_heads for kind in coded_layers(config.text)))
