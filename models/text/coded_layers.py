"""Layers whose visual keys and values are coded, and whose codes each layer reads."""

from collections.abc import Callable
from typing import NamedTuple

from models.text.config import FULL_STACKS, TextConfig
from vkq_jax.cache.empty import LayerSizes
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.layer_groups import LayerGroups, Quant
from vkq_jax.settings.layer_settings import PerLayer
from vkq_jax.settings.presets import resolve

__all__ = ["ReadLayers", "coded_layers", "other_layers", "read_layers", "settle_layers"]


def coded_layers(text: TextConfig) -> tuple[LayerSizes, ...]:
    """Layers whose visual tokens are coded, those with heads of equal sizes together.

    Their order is that of the parts of a cache of one setting that hold visual tokens.
    """
    heads = text.num_key_value_heads, text.head_dim
    if text.cross_layers:
        return (LayerSizes(text.cross_layers, *heads),)
    states = () if text.linear is None else text.linear.layers
    other = other_layers(text)
    apart = (*states, *(() if other is None else other.layers))
    own = LayerSizes(tuple(n for n in range(text.num_own_layers) if n not in apart), *heads)
    return (own,) if other is None else (own, other)


def other_layers(text: TextConfig) -> LayerSizes | None:
    """Layers whose keys and values have other sizes than those of the others, if there are any."""
    apart = text.full_layers_apart
    if apart is None:
        return None
    sizes = apart.num_key_value_heads, apart.head_dim
    if sizes == (text.num_key_value_heads, text.head_dim):
        return None
    return LayerSizes(text.stacks[FULL_STACKS[0]], *sizes)


class ReadLayers(NamedTuple):
    """The layers whose coded visual tokens the layers of a stack read: their own, or earlier ones.

    Attributes:
        kind: place in `coded_layers`.
        layers: numbers, one for each layer of the stack.
        rows: their places among the layers of the kind.
    """

    kind: int
    layers: tuple[int, ...]
    rows: tuple[int, ...]


def read_layers(text: TextConfig) -> dict[str, ReadLayers]:
    """For each stack of layers that read coded visual tokens (see `TextConfig.stacks`): which."""
    found = {}
    for name, layers in text.stacks.items():
        if name in text.sources:
            layers = (text.sources[name][1],) * len(layers)
        for kind, own in enumerate(coded_layers(text)):
            if layers[0] in own.layers:
                found[name] = ReadLayers(kind, layers, tuple(map(own.layers.index, layers)))
    return found


def settle_layers(
    text: TextConfig,
    quant: PerLayer | LayerGroups,
    find: Callable[[str | KVQuantConfig], KVQuantConfig] = resolve,
) -> Quant:
    """Settings of layers and heads for a decoder; `find` as for `PerLayer.settle`.

    Raises:
        ValueError: a layer or head that the decoder does not have, or layers without visual tokens.
    """
    layers, heads = text.num_hidden_layers, text.num_key_value_heads
    if isinstance(quant, LayerGroups):
        return quant.settle(text.num_own_layers, heads, find)
    held = {number for kind in coded_layers(text) for number in kind.layers}
    settled = quant.settle(
        layers, heads, find, without=[number for number in range(layers) if number not in held]
    )
    if not isinstance(settled, LayerGroups):
        return settled
    groups = settled.of_layers(range(text.num_own_layers))
    return groups[0][1] if len(groups) == 1 else LayerGroups(groups)
