"""Settings that differ from layer to layer, or from head to head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from vkq_jax.messages import show
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.layer_groups import Cells, LayerGroups, Quant
from vkq_jax.settings.presets import resolve
from vkq_jax.validation import whole_number

__all__ = ["MOST_NUMBERS", "AnyQuant", "PerLayer", "per_head", "per_layer"]

type AnyQuant = str | KVQuantConfig | PerLayer | LayerGroups
"""Settings of a cache, or what they are found by: `quant` of each function that makes a cache."""

type Numbers = int | range

MOST_NUMBERS = 2**16  # layers or heads; no model has nearly as many


@dataclasses.dataclass(frozen=True)
class PerLayer:
    """Settings of any model's layers and heads: a default, and changes. From `per_layer`.

    Attributes:
        default: name of a preset or settings.
        changes: a layer or a range of them, number of a KV head, and their settings. Numbers that
            are negative count from the last one; None stands for all layers, or all heads of a
            layer.
    """

    default: str | KVQuantConfig
    changes: tuple[tuple[Numbers | None, int | None, str | KVQuantConfig], ...]

    @property
    def named(self) -> tuple[str | KVQuantConfig, ...]:
        """All settings that are named, the default first."""
        return (self.default, *(quant for *_, quant in self.changes))

    def settle(
        self,
        num_layers: int,
        num_kv_heads: int,
        find: Callable[[str | KVQuantConfig], KVQuantConfig] = resolve,
        *,
        without: Collection[int] = (),
    ) -> Quant:
        """The settings of each head of a model; plain ones where all heads have the same.

        Args:
            num_layers, num_kv_heads: L and K of a model.
            find: what a name or settings stand for.
            without: layers that hold no visual tokens, so that settings of them mean nothing.

        Raises:
            ValueError: a layer or head that the model does not have, or that is named twice; a
                layer of `without`, or a range with no others.
        """
        own: dict[tuple[int | None, int | None], str | KVQuantConfig] = {}
        for layers, head, quant in self.changes:
            counted = [_counted("layer", layer, num_layers) for layer in _each(layers)]
            if layers is not None and set(counted) <= set(without):
                raise _without_effect(layers, num_layers, without)
            for layer in counted:
                place = (layer, _counted("head", head, num_kv_heads))
                if place in own:
                    raise ValueError(f"per_layer: {_place_name(*place)} is named twice")
                own[place] = quant
        groups: dict[tuple[KVQuantConfig, int], dict[int, tuple[int, ...]]] = {}
        for layer in range(num_layers):
            heads: dict[KVQuantConfig, list[int]] = {}
            for head in range(num_kv_heads):
                places = ((layer, head), (layer, None), (None, head))
                quant = next((own[place] for place in places if place in own), self.default)
                heads.setdefault(find(quant), []).append(head)
            for quant, numbers in heads.items():
                groups.setdefault((quant, len(numbers)), {})[layer] = tuple(numbers)
        if len(groups) == 1:
            return next(iter(groups))[0]
        return LayerGroups(
            tuple(
                (Cells(tuple(of), None if count == num_kv_heads else tuple(of.values())), quant)
                for (quant, count), of in groups.items()
            )
        )


def _counted(kind: str, number: int | None, count: int) -> int | None:
    """The number from 0 on; raises ValueError for one that the model does not have."""
    if number is None:
        return None
    if type(number) is not int or not -count <= number < count:
        raise ValueError(
            f"per_layer: expected {kind}s in [-{count}, {count}) for a model of {count}, "
            f"got {show(number)}"
        )
    return number % count


def _each(layers: Numbers | None) -> Sequence[int | None]:
    return layers if isinstance(layers, range) else (layers,)


def _without_effect(layers: Numbers, num_layers: int, without: Collection[int]) -> ValueError:
    held = [number for number in range(num_layers) if number not in without]
    named = f"layer {layers}" if isinstance(layers, int) else f"layers {show(list(layers))}"
    return ValueError(
        f"per_layer: expected layers that hold visual tokens, which in this model are "
        f"{show(held)}; settings of {named} would have no effect"
    )


def _place_name(layer: int | None, head: int | None) -> str:
    if head is None:
        return f"layer {layer}"
    return f"head {head} of {'all layers' if layer is None else f'layer {layer}'}"


type Place = Numbers | tuple[Numbers | Literal["all"], Numbers]


def per_layer(
    default: str | KVQuantConfig, changes: Mapping[Place, str | KVQuantConfig]
) -> PerLayer:
    """Settings that differ by layer or head: `per_layer("vkq-1bit", {0: "none", (5, 2): "none"})`.

    `models.generate(quant=...)` and `empty_cache(quant=...)` take them as they take a name. Changes
    of a head of one layer come before those of the layer, and these before those of a head of all
    layers.

    Args:
        default: of what is not named: a preset's name or settings.
        changes: by the number of a layer, -1 for the last one, or by a layer and one of its KV
            heads, `(layer, head)`, where the layer may be "all". Ranges stand for all of their
            numbers. A layer has to hold visual tokens; in a range one layer has to.

    Raises:
        ValueError: an unknown preset, or something other than layers, heads and settings.
    """
    if not isinstance(changes, Mapping):
        raise ValueError(f"changes: expected layers and their settings, got {show(changes)}")
    listed = []
    for place, quant in changes.items():
        if isinstance(place, tuple) and len(place) == 2:
            layers, heads = place
            chosen = None if layers == "all" else _checked(layers, place)
            own = _each(_checked(heads, place))
        else:
            chosen, own = _checked(place, place), (None,)
        listed += [(chosen, head, quant) for head in own]
    settings = PerLayer(default, tuple(listed))
    for quant in settings.named:
        resolve(quant)
    return settings


def per_head(
    default: str | KVQuantConfig, changes: Mapping[Numbers, str | KVQuantConfig]
) -> PerLayer:
    """Settings that differ by KV head, the same in all layers: `per_head("vkq-1bit", {3: "none"})`.

    Args:
        default: of the heads that are not named: a preset's name or settings.
        changes: by the number of a KV head, -1 for the last one, or by a range of them.

    Raises:
        ValueError: an unknown preset, or something other than heads and settings.
    """
    if not isinstance(changes, Mapping):
        raise ValueError(f"changes: expected heads and their settings, got {show(changes)}")
    return per_layer(default, {("all", head): quant for head, quant in changes.items()})


def _checked(numbers: Any, place: Any) -> Numbers:
    """A number or a range of some; raises ValueError for anything else."""
    if isinstance(numbers, range):
        if not numbers:
            raise ValueError(f"changes: expected layers or heads, got the empty {show(numbers)}")
        if max(map(abs, (numbers[0], numbers[-1]))) > MOST_NUMBERS:
            raise ValueError(
                f"changes: expected numbers from -{MOST_NUMBERS} to {MOST_NUMBERS}, got "
                f"{show(place)}"
            )
        return numbers
    number = whole_number(numbers)
    if number is None or abs(number) > MOST_NUMBERS:
        raise ValueError(
            "changes: expected integers or ranges, or pairs of them for a layer and its heads, of "
            f"at most {MOST_NUMBERS}, got {show(place)}"
        )
    return number
