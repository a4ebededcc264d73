"""Names of weights: those in files, which vary, and the one that each parameter has here.

The canonical name of a parameter is its path in the module, in Hugging Face's spelling:
`text.layers.{}.self_attn.q_proj.weight`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from models.checkpoints.weights import Layout, Size, Source

__all__ = ["WeightNames"]

_STACKS = frozenset({"layers"})
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
        special: sources of parameters that the general rule does not describe, by canonical name.
    """

    rules: tuple[tuple[str, str], ...]
    published: tuple[tuple[str, str], ...]
    sizes: tuple[Size, ...] = ()
    is_unused: Callable[[str], bool] = _nothing
    special: Mapping[str, Source] = dataclasses.field(default_factory=dict)

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
        *module, leaf = (f"{part}.{{}}" if part in _STACKS else str(part) for part in path)
        layout = Layout.TRANSPOSED if leaf == "kernel" else Layout.SAME
        name = ".".join([*module, "weight" if leaf == "kernel" else leaf])
        return self.special.get(name, Source(name, layout))


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    """A name by the first rule that matches at its start, if one does."""
    for pattern, replacement in rules:
        renamed, count = re.subn(rf"\A(?:{pattern})", replacement, name, count=1)
        if count:
            return renamed
    return None
