"""Layers and heads of a model in groups of equal settings."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

from vkq_jax.messages import show
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import resolve
from vkq_jax.validation import check_fields

__all__ = [
    "Cells",
    "LayerGroups",
    "Quant",
    "check_cells",
    "groups_of",
    "num_heads",
    "settings_of",
]

type Quant = KVQuantConfig | LayerGroups
"""Settings of a cache: the same for all layers and heads, or for groups of them."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """Layers of a model and, of each one, the KV heads that have the same settings. Hashable.

    Attributes:
        layers: numbers of the layers, ascending.
        heads: of each of these layers the numbers of its KV heads, ascending, as many in each
            layer; None: all heads.
    """

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self):
        """Raises ValueError for fields of other types."""
        check_fields(self)

    def within(self, layers: Sequence[int]) -> Cells:
        """The same heads, their layers counted among `layers`, which has all of them."""
        return Cells(tuple(map(layers.index, self.layers)), self.heads)


@dataclasses.dataclass(frozen=True)
class LayerGroups:
    """Settings of all layers and heads of a model, those with equal settings in groups. Hashable.

    Attributes:
        groups: layers and heads of each group, and their settings.
    """

    groups: tuple[tuple[Cells, KVQuantConfig], ...]

    def __post_init__(self):
        """Raises ValueError unless each head of each layer from 0 on is in just one group."""
        check_fields(self)
        check_cells(tuple(cells for cells, _ in self.groups))

    @property
    def settings(self) -> tuple[KVQuantConfig, ...]:
        """Settings of each group."""
        return tuple(quant for _, quant in self.groups)

    @property
    def num_layers(self) -> int:
        """L, layers of all groups."""
        return len({layer for cells, _ in self.groups for layer in cells.layers})

    @property
    def num_kv_heads(self) -> int | None:
        """K, KV heads of a layer; None where no layer tells heads apart: any number will do."""
        return num_heads(tuple(cells for cells, _ in self.groups))

    def of_layers(self, layers: Sequence[int]) -> tuple[tuple[Cells, KVQuantConfig], ...]:
        """The groups with no other layers than these; a group without any is left out."""
        found = []
        for cells, quant in self.groups:
            rows = cells.heads or (None,) * len(cells.layers)
            kept = [pair for pair in zip(cells.layers, rows, strict=True) if pair[0] in layers]
            if kept:
                own, heads = zip(*kept, strict=True)
                found.append((Cells(own, None if cells.heads is None else heads), quant))
        return tuple(found)

    @property
    def named(self) -> tuple[KVQuantConfig, ...]:
        """All settings, as of `PerLayer`."""
        return self.settings

    def settle(
        self,
        num_layers: int,
        num_kv_heads: int,
        find: Callable[[str | KVQuantConfig], KVQuantConfig] = resolve,
    ) -> LayerGroups:
        """These settings for a model of this size; `find` as for `PerLayer.settle`.

        Raises:
            ValueError: they are of another number of layers or heads.
        """
        if self.num_layers != num_layers:
            raise ValueError(
                f"quant: expected settings of {num_layers} layers, got {self.num_layers}"
            )
        if self.num_kv_heads not in (None, num_kv_heads):
            raise ValueError(
                f"quant: expected settings of {num_kv_heads} KV heads, got {self.num_kv_heads}"
            )
        return LayerGroups(tuple((cells, find(quant)) for cells, quant in self.groups))


def check_cells(groups: tuple[Cells, ...]) -> None:
    """Raises ValueError unless each head of each layer from 0 on is in just one group."""
    found: dict[int, list[tuple[int, ...] | None]] = collections.defaultdict(list)
    for cells in groups:
        rows = (None,) * len(cells.layers) if cells.heads is None else cells.heads
        if len(rows) != len(cells.layers) or len({len(row or ()) for row in rows}) > 1:
            raise ValueError(
                "groups: expected equally many heads for each layer of a group, got "
                f"{show(rows)} for layers {show(cells.layers)}"
            )
        for layer, row in zip(cells.layers, rows, strict=True):
            found[layer].append(row)
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(
            f"groups: expected each layer from 0 on in one group, got {show(sorted(found))}"
        )
    every = list(range(num_heads(groups) or 0))
    for layer, rows in found.items():
        heads = sorted(head for row in rows for head in row or ())
        if rows != [None] and (None in rows or heads != every):
            raise ValueError(
                f"groups: expected each head of layer {layer} in one group, got {show(rows)}"
            )


def num_heads(groups: tuple[Cells, ...]) -> int | None:
    """K, KV heads of a layer whose heads are in groups; None where there is no such layer."""
    apart = [cells for cells in groups if cells.heads is not None]
    if not apart:
        return None
    first = apart[0].layers[0]
    own = (
        cells.heads[cells.layers.index(first)]
        for cells in apart
        if cells.heads is not None and first in cells.layers
    )
    return sum(map(len, own))


def settings_of(quant: Quant) -> tuple[KVQuantConfig, ...]:
    """All settings that layers and heads of a cache have, each once."""
    return tuple(dict.fromkeys(quant.settings)) if isinstance(quant, LayerGroups) else (quant,)


def groups_of(quant: Quant, layers: Sequence[int]) -> tuple[tuple[Cells, KVQuantConfig], ...]:
    """These layers in groups of equal settings, in the order of the groups."""
    if isinstance(quant, LayerGroups):
        return quant.of_layers(layers)
    return ((Cells(tuple(layers)), quant),)
