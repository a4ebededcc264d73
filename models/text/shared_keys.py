"""Layers that read the keys and values of an earlier layer (Gemma 4's E2B and E4B).

The carry of a loop over layers holds, beside that of its caller, what the last layer of each kind
made of the tokens of the call.
"""

from typing import Any

import jax.numpy as jnp

from models.layers.attention import Attend
from models.text.config import TextConfig
from vkq_jax.array_types import Array, Float

__all__ = ["keeping", "nothing_held", "reading"]


def nothing_held(
    config: TextConfig, x: Float[Array, "B T hidden_size"]
) -> dict[str, tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]]:
    """Keys and values of each stack that has its own, before the first layer."""
    found = {}
    for name in config.stacks:
        if not name.startswith("shared_"):
            own = config.of_stack(name)
            shape = (*x.shape[:2], own.num_key_value_heads, own.head_dim)
            found[name] = (jnp.zeros(shape, x.dtype),) * 2
    return found


def keeping(attend: Attend, name: str) -> Attend:
    """`attend` of layers of a stack whose keys and values others read."""

    def attend_and_keep(layer: Any, query: Array, key: Any, value: Any, carry: Any) -> Any:
        inner, held = carry
        output, inner, out = attend(layer, query, key, value, inner)
        return output, (inner, held | {name: (key, value)}), out

    return attend_and_keep


def reading(attend: Attend, name: str, source: int) -> Attend:
    """`attend` of layers that read what layer `source`, the last one of a stack, has made."""

    def attend_to_held(layer: Any, query: Array, key: Any, value: Any, carry: Any) -> Any:
        inner, held = carry
        key, value = held[name]
        output, inner, out = attend(source, query, key, value, inner)
        return output, (inner, held), out

    return attend_to_held
