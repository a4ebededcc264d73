"""Gemma 4 12B's image processor on PIL, of transformers' parts: its own needs torchvision."""

import ast
import importlib.util
import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["gemma4_unified_image_processor", "theirs_merged"]


def gemma4_unified_image_processor(folder: str | PathLike[str]) -> Any:
    """Gemma 4's, with its patches merged as transformers does it."""
    from transformers.models.gemma4 import image_processing_pil_gemma4 as on_pil

    class OnPil(on_pil.Gemma4ImageProcessorPil):
        def _preprocess(self, images, *arguments, **options):
            found = super()._preprocess(images, *arguments, **options)
            pixels, places = (
                np.asarray(found[name]) for name in ("pixel_values", "image_position_ids")
            )
            side = options["pooling_kernel_size"]
            each = [
                theirs_merged(own, grid, side) for own, grid in zip(pixels, places, strict=True)
            ]
            pixels, places = (np.stack(arrays) for arrays in zip(*each, strict=True))
            found["pixel_values"], found["image_position_ids"] = pixels, places
            return found

    return OnPil.from_pretrained(folder)


def theirs_merged(
    patches: np.ndarray, places: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """One picture's patches and places as transformers' own function merges them, then padding."""
    import torch

    count, most = int((places[:, 0] >= 0).sum()), len(patches) // side**2
    given = (torch.tensor(np.asarray(x[:count]))[None] for x in (patches, places))
    pixels, grid = (x[0].numpy() for x in _function()(*given, count // side**2))
    behind = ((0, most - len(pixels)), (0, 0))
    return np.pad(pixels, behind), np.pad(grid, behind, constant_values=-1)


def _function() -> Any:
    """transformers' own, read from a file that cannot be imported here."""
    import torch

    found = importlib.util.find_spec("transformers.models.gemma4_unified")
    assert found is not None
    (folder,) = found.submodule_search_locations or ()
    source = Path(folder, "image_processing_gemma4_unified.py").read_text()
    tree = ast.parse(source)
    tree.body = [each for each in tree.body if getattr(each, "name", None) == "patches_merge"]
    names: dict[str, Any] = {"math": math, "torch": torch}
    exec(compile(tree, source, "exec"), names)
    return names["patches_merge"]
