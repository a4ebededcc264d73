"""Settings that differ from layer to layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vkq_jax.config import KVQuantConfig
from vkq_jax.presets import resolve
from vkq_jax.validation import shown

__all__ = ["LayerGroups", "PerLayer", "Quant", "one_setting", "per_layer", "settings_of"]

type Quant = KVQuantConfig | LayerGroups
"""Settings of a cache: the same for all layers, or for groups of them."""


@dataclasses.dataclass(frozen=True)
class LayerGroups:
    """Settings of all layers of a model, layers with equal settings in one group. Hashable.

    Attributes:
        groups: numbers of a group's layers, ascending, and their settings.
    """

    groups: tuple[tuple[tuple[int, ...], KVQuantConfig], ...]

    def __post_init__(self):
        """Raises ValueError unless each layer from 0 on is in just one group."""
        numbers = sorted(number for layers, _ in self.groups for number in layers)
        if not numbers or numbers != list(range(len(numbers))):
            raise ValueError(
                f"groups: expected each layer from 0 on in one group, got {shown(numbers)}"
            )

    @property
    def settings(self) -> tuple[KVQuantConfig, ...]:
        """Settings of each group."""
        return tuple(quant for _, quant in self.groups)

    @property
    def num_layers(self) -> int:
        """L, layers of all groups."""
        return sum(len(layers) for layers, _ in self.groups)


@dataclasses.dataclass(frozen=True)
class PerLayer:
    """Settings of any model's layers: a default, and changes by layer. From `per_layer`.

    Attributes:
        default: name of a preset or settings.
        changes: layers, which count from the last one where they are negative, and theirs.
    """

    default: str | KVQuantConfig
    changes: tuple[tuple[int, str | KVQuantConfig], ...]

    def settle(
        self,
        num_layers: int,
        find: Callable[[str | KVQuantConfig], KVQuantConfig] = resolve,
    ) -> Quant:
        """The settings of each of `num_layers`; plain ones where all layers have the same.

        Args:
            num_layers: L of a model.
            find: what a name or settings stand for.

        Raises:
            ValueError: a layer that the model does not have, or that is named twice.
        """
        own: dict[int, str | KVQuantConfig] = {}
        for number, quant in self.changes:
            if not -num_layers <= number < num_layers:
                raise ValueError(
                    f"per_layer: expected layers in [-{num_layers}, {num_layers}) for a model of "
                    f"{num_layers}, got {number}"
                )
            if number % num_layers in own:
                raise ValueError(f"per_layer: layer {number % num_layers} is named twice")
            own[number % num_layers] = quant
        groups: dict[KVQuantConfig, list[int]] = {}
        for layer in range(num_layers):
            groups.setdefault(find(own.get(layer, self.default)), []).append(layer)
        if len(groups) == 1:
            return next(iter(groups))
        return LayerGroups(tuple((tuple(layers), quant) for quant, layers in groups.items()))


def per_layer(
    default: str | KVQuantConfig, changes: Mapping[int | range, str | KVQuantConfig]
) -> PerLayer:
    """Settings that differ by layer: `per_layer("vkq-1bit", {0: "none", -1: "vkq-2bit"})`.

    `models.generate(quant=...)` and `empty_cache(quant=...)` take them as they take a name.

    Args:
        default: of the layers that are not named: a preset's name or settings.
        changes: by the number of a layer, -1 for the last one, or by a range of them.

    Raises:
        ValueError: an unknown preset, or something other than layers and settings.
    """
    if not isinstance(changes, Mapping):
        raise ValueError(f"changes: expected layers and their settings, got {shown(changes)}")
    listed = []
    for layers, quant in changes.items():
        if isinstance(layers, bool) or not isinstance(layers, int | range):
            raise ValueError(f"changes: expected integers or ranges, got {shown(layers)}")
        listed += [(n, quant) for n in (layers if isinstance(layers, range) else (layers,))]
    for quant in (default, *(quant for _, quant in listed)):
        resolve(quant)
    return PerLayer(default, tuple(listed))


def settings_of(quant: Quant) -> tuple[KVQuantConfig, ...]:
    """All settings that layers of a cache have, each once."""
    return quant.settings if isinstance(quant, LayerGroups) else (quant,)


def one_setting(quant: Any, reader: str) -> KVQuantConfig:
    """The settings of all layers; raises NotImplementedError where layers have their own."""
    if isinstance(quant, PerLayer | LayerGroups):
        raise NotImplementedError(f"{reader} takes one setting for all layers, got per_layer(...)")
    return resolve(quant)
