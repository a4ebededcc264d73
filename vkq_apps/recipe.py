"""The recipe of the embedded model, `vkq_apps.training`: a clone has it, an installed wheel not."""

import importlib.util

__all__ = ["check_recipe", "has_recipe"]


def has_recipe() -> bool:
    """Whether pictures of the recipe can be drawn here."""
    return importlib.util.find_spec("vkq_apps.training") is not None


def check_recipe(instead: str) -> None:
    """Checks that pictures of the recipe can be drawn here.

    Args:
        instead: what to give in their place.

    Raises:
        ValueError: they cannot.
    """
    if not has_recipe():
        raise ValueError(
            "the embedded model's pictures are drawn by vkq_apps.training, which is part of a "
            f"clone of vkq-jax and not of the installed package: expected {instead}"
        )
