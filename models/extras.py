"""One clear error where `models` is imported and the packages that it needs are not installed."""

import importlib.util

__all__ = ["check_installed"]

NEEDED = ("flax", "transformers", "tokenizers", "jinja2", "PIL")
"""Packages that the extra `vkq-jax[models]` brings, by the names of imports."""


def check_installed() -> None:
    """Raises ModuleNotFoundError for the first package that is missing."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f'models needs {name}, which is not installed: pip install "vkq-jax[models]"',
                name=name,
            )


check_installed()
