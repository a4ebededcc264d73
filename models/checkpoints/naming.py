"""Names of weights: those in files, which vary, and the one that each parameter has here.

The canonical name of a parameter is its path in the module, in Hugging Face's spelling:
`text.layers.{}.self_attn.q_proj.weight`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from models.checkpoints.sources import Layout, Size, Source

__all__ = ["WeightNames"]

_STACKS = frozenset(
    {
        "layers",
        "cross_layers",
        "linear_layers",
        "dense_layers",
        "full_layers",
        "shared_layers",
        "shared_full_layers",
    }
)
"""Modules that hold a stack of equal blocks."""


def _nothing(name: str) -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """How one model's weights are called in files.

    Attributes:
        rules: regular expressions of keys in files and what their match becomes in canonical
            names, for `re.sub`; the first that matches at the start of a key applies.
        published: the same from canonical names to the keys of files that this library writes.
        sizes: where the files show the sizes that config.json states.
        is_unused: tells canonical names that rightly lie in the files and that the model does not
            use.
        numbers: the layers' numbers in the files, by the canonical name of their stack
            ("text.layers"), where those are not 0, 1, 2 ...
        special: sources of parameters that the general rule does not describe, by canonical name.
        alternatives: other sources for some of them, for files that store them so.
    """

    rules: tuple[tuple[str, str], ...]
    published: tuple[tuple[str, str], ...]
    sizes: tuple[Size, ...] = ()
    is_unused: Callable[[str], bool] = _nothing
    numbers: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    special: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    alternatives: tuple[Mapping[str, Source], ...] = ()

    def fitted(self, params: nnx.State, shapes: Mapping[str, tuple[int, ...]]) -> WeightNames:
        """These names with those of `alternatives`, if any, whose tensors the files have.

        Args:
            params: parameters or their `jax.ShapeDtypeStruct`s.
            shapes: of the stored tensors by canonical name.
        """
        parameters = {_joined(path): each for path, each in nnx.to_flat_state(params)}
        for sources in self.alternatives:
            first = [(each, parameters[name]) for name, each in sources.items()]
            if all(shapes.get(s.names(p)[0]) == s.stored_shape(p) for s, p in first):
                return dataclasses.replace(self, special={**self.special, **sources})
        return self

    def canonical(self, key: str) -> str:
        """The one name of a weight that files call differently; a foreign key stays as it is."""
        return _rename(key, self.rules) or key

    def to_published(self, name: str) -> str:
        """A key for a canonical name that transformers reads."""
        renamed = _rename(name, self.published)
        if renamed is None:
            raise ValueError(f"not a canonical name: {name}")
        return renamed

    def source(self, path: tuple[Any, ...]) -> Source:
        """Where the parameter at a path of the module comes from, by canonical name.

        Linear layers hold their `kernel` [in, out], files their `weight` [out, in].
        """
        layout = Layout.TRANSPOSED if path[-1] == "kernel" else Layout.SAME
        name = _joined(path)
        numbers = self.numbers.get(name.partition(".{}")[0])
        return self.special.get(name, Source(name, layout, numbers=numbers))


def _joined(path: tuple[Any, ...]) -> str:
    """The canonical name of the parameter at a path of the module."""
    *module, leaf = (f"{part}.{{}}" if part in _STACKS else str(part) for part in path)
    return ".".join([*module, "weight" if leaf == "kernel" else leaf])


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    """A name by the first rule that matches at its start, if one does."""
    for pattern, replacement in rules:
        renamed, count = re.subn(rf"\A(?:{pattern})", replacement, name, count=1)
        if count:
            return renamed
    return None
