"""The module of families whose vision transformer takes pictures of any size."""

import abc
from typing import Any

from flax import nnx

from models.families.base import MultimodalModel
from models.layers.linear import Maker
from models.text.decoder import TextDecoder
from models.vision.grid_tower import GridTransformer
from models.vision.patch_grid import PatchGrids
from vkq_jax.array_types import Array, Float

__all__ = ["AnyGridModel"]


class AnyGridModel(MultimodalModel, abc.ABC):
    """Three parts: `vision`, `projector`, `text`."""

    def __init__(self, config: Any, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = GridTransformer(config.vision, make)
        self.projector = self.make_projector(config, make)
        self.text = TextDecoder(config.text, make)

    @abc.abstractmethod
    def make_projector(self, config: Any, make: Maker) -> nnx.Module:
        """A module from patches [F, P, width] to visual tokens [F, tokens, hidden_size]."""

    def image_features(
        self, pixel_values: Float[Array, "F P patch_width"], layout: PatchGrids
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all frames, in the order of the tokens."""
        patches, _ = self.vision(pixel_values, layout)
        return layout.in_order(self.projector(patches))
