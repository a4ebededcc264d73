"""Names of weights that a vision tower adds to those of a model."""

import dataclasses
from collections.abc import Callable, Mapping

from models.checkpoints.sources import Size, Source

__all__ = ["TowerNames"]


@dataclasses.dataclass(frozen=True)
class TowerNames:
    """Parts of `models.checkpoints.naming.WeightNames`, which has the meaning of each."""

    sizes: tuple[Size, ...]
    special: Mapping[str, Source]
    is_unused: Callable[[str], bool]
    rules: tuple[tuple[str, str], ...] = ()
    published: tuple[tuple[str, str], ...] = ()
