"""Names of weights that a vision tower adds to those of a model."""

import dataclasses
import re
from collections.abc import Callable, Mapping

from models.checkpoints.sources import Size, Source

__all__ = ["TowerNames", "layer_of"]

_LAYER = re.compile(r"vision\.encoder\.layers\.([0-9]{1,9})\.")


@dataclasses.dataclass(frozen=True)
class TowerNames:
    """Parts of `models.checkpoints.naming.WeightNames`, which has the meaning of each."""

    sizes: tuple[Size, ...]
    special: Mapping[str, Source]
    is_unused: Callable[[str], bool]
    rules: tuple[tuple[str, str], ...] = ()
    published: tuple[tuple[str, str], ...] = ()


def layer_of(name: str) -> int | None:
    """The number of the encoder layer that a canonical name belongs to; None: to no layer."""
    layer = _LAYER.match(name)
    return None if layer is None else int(layer[1])
