"""Where layers and heads of a model lie in groups of equal settings, and how groups are joined."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vkq_jax.array_types import Array, Float, Int32, Shaped
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.messages import show
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.layer_groups import Cells
from vkq_jax.settings.score_maps import ScoreMap

__all__ = [
    "Routes",
    "heads_at",
    "join_heads",
    "place_in",
    "places_of",
    "routes",
    "take_bias",
    "take_cells",
    "take_heads",
    "take_score_map",
]


def places_of(groups: tuple[Cells, ...], layer: int) -> tuple[tuple[int, int], ...]:
    """The groups that a layer is in, and its number in each."""
    return tuple(
        (number, cells.layers.index(layer))
        for number, cells in enumerate(groups)
        if layer in cells.layers
    )


def place_in(cells: Cells, layer: Int32[Array, ""] | int) -> Int32[Array, ""] | int:
    """The number in a group of one of its layers, which may be traced.

    Raises:
        ValueError: a layer that is not traced and not in the group.
    """
    if isinstance(layer, Tracer):
        table = np.zeros(max(cells.layers) + 1, np.int32)
        table[list(cells.layers)] = np.arange(len(cells.layers))
        return jnp.asarray(table)[layer]
    number = operator.index(layer)  # type: ignore[arg-type]
    if number not in cells.layers:
        raise ValueError(f"layer: expected one of {show(list(cells.layers))}, got {number}")
    return cells.layers.index(number)


@dataclasses.dataclass(frozen=True)
class Routes:
    """The groups of each layer, for a loop over traced layers.

    Attributes:
        patterns: the different sets of groups that layers are in.
        pattern: number of each layer's pattern [L]; 0 for a layer that is in no group.
        place: number of each layer in each group [L, groups], 0 where it is not in the group.
        member: whether each layer is in each group [L, groups].
    """

    patterns: tuple[tuple[int, ...], ...]
    pattern: np.ndarray
    place: np.ndarray
    member: np.ndarray


def routes(groups: tuple[Cells, ...]) -> Routes:
    """The groups of each layer."""
    count = 1 + max(layer for cells in groups for layer in cells.layers)
    place = np.zeros((count, len(groups)), np.int32)
    member = np.zeros(place.shape, bool)
    found = []
    for layer in range(count):
        for group, number in places_of(groups, layer):
            place[layer, group], member[layer, group] = number, True
        found.append(tuple(np.flatnonzero(member[layer]).tolist()))
    patterns = tuple(dict.fromkeys(groups for groups in found if groups))
    pattern = [patterns.index(groups) if groups else 0 for groups in found]
    return Routes(patterns, np.asarray(pattern, np.int32), place, member)


def heads_at(cells: Cells, place: Int32[Array, ""] | int) -> Int32[Array, "k"] | None:
    """KV heads of a group's layer at a place, traced or not; None: all of them."""
    return None if cells.heads is None else jnp.asarray(cells.heads, jnp.int32)[place]


def take_heads(
    x: Shaped[Array, "..."], heads: Int32[Array, "k"] | None, num_kv_heads: int, axis: int
) -> Shaped[Array, "..."]:
    """Some KV heads of an array whose `axis` has K heads, or the N query heads of K KV heads."""
    if heads is None:
        return x
    rows = jnp.arange(x.shape[axis], dtype=jnp.int32).reshape(num_kv_heads, -1)
    return jnp.take(x, rows[heads].reshape(-1), axis=axis, mode="clip")


def join_heads(
    parts: Sequence[tuple[Int32[Array, "_"] | None, Shaped[Array, "..."]]], axis: int
) -> Shaped[Array, "..."]:
    """All heads of a layer in the model's order, from the heads of each group: see `take_heads`."""
    if len(parts) == 1:
        return parts[0][1]
    heads = jnp.concatenate([own for own, _ in parts if own is not None])
    joined = jnp.concatenate([x for _, x in parts], axis)
    return take_heads(joined, jnp.argsort(heads), len(heads), axis)


def take_cells[T](stacked: T, cells: Cells, *, axis: int = 1) -> T:
    """Some layers and KV heads of a pytree of arrays.

    Args:
        stacked: arrays [L, ...] with K heads at `axis`.
        cells: which layers, and which heads of each; `stacked` itself comes back where they are
            all.
        axis: of the heads.
    """
    leaves = jax.tree.leaves(stacked)
    if not leaves or (cells.heads is None and cells.layers == tuple(range(leaves[0].shape[0]))):
        return stacked
    layers = jnp.asarray(cells.layers)
    if cells.heads is None:
        return jax.tree.map(lambda x: x[layers], stacked)
    heads = jnp.asarray(cells.heads)

    def take(x: Any) -> Array:
        return jnp.moveaxis(jnp.moveaxis(x, axis, 1)[layers[:, None], heads], 1, axis)

    return jax.tree.map(take, stacked)


def take_score_map(
    score_map: ScoreMap, cells: Cells, num_kv_heads: int, quant: KVQuantConfig
) -> ScoreMap:
    """The rows of a score map [L, N] that belong to some layers and heads of a model of K heads.

    `quant` are the settings of these heads, which the map was calibrated with.
    """

    def take(x: Float[Array, "L N"]) -> Float[Array, "l n"]:
        taken = take_cells(x.reshape(x.shape[0], num_kv_heads, -1), cells)
        return taken.reshape(taken.shape[0], -1)

    own = None if score_map.quant is None else quant
    return ScoreMap(take(score_map.slope), take(score_map.shift), own)


def take_bias(bias: KeyBias | None, cells: Cells) -> KeyBias | None:
    """The key bias of some layers and heads, of that of all."""
    if bias is None:
        return None
    return dataclasses.replace(bias, bias=take_cells(bias.bias, cells))
