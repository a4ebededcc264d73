"""Command A Vision's image processor on PIL, of transformers' parts: its own needs torchvision."""

import ast
import functools
import importlib.util
import types
from os import PathLike
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

__all__ = ["cohere2_image_processor"]

_FUNCTIONS = ("get_all_supported_aspect_ratios", "get_optimal_tiled_canvas")


def cohere2_image_processor(folder: str | PathLike[str]) -> Any:
    """GotOcr2's, from which transformers derives this one, with its defaults and its grids."""
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as on_pil

    class OnPil(on_pil.GotOcr2ImageProcessorPil):
        size = types.MappingProxyType({"height": 512, "width": 512})
        crop_to_patches = True
        patch_size = 16

        def crop_image_to_patches(self, *arguments, **options):
            with mock.patch.object(on_pil, "get_optimal_tiled_canvas", _grid_function()):
                return super().crop_image_to_patches(*arguments, **options)

    return OnPil.from_pretrained(folder)


def _grid_function() -> Any:
    """transformers' own, read from a file that cannot be imported here."""
    found = importlib.util.find_spec("transformers.models.cohere2_vision")
    assert found is not None
    (folder,) = found.submodule_search_locations or ()
    source = Path(folder, "image_processing_cohere2_vision.py").read_text()
    tree = ast.parse(source)
    tree.body = [each for each in tree.body if getattr(each, "name", None) in _FUNCTIONS]
    names: dict[str, Any] = {"np": np, "lru_cache": functools.lru_cache}
    exec(compile(tree, source, "exec"), names)
    return names["get_optimal_tiled_canvas"]
