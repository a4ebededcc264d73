"""transformers, imported when a processor is needed: the import takes seconds."""

import importlib
import os
from typing import Any

__all__ = ["from_transformers"]

_QUIET = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def from_transformers(name: str, module: str = "transformers") -> Any:
    """A class of transformers; its first import does not advise PyTorch, which nothing needs.

    Args:
        name: of the class.
        module: that defines it, where the name at the top demands more packages.
    """
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = before or "1"
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before
