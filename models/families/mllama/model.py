"""The module of Mllama: a vision tower, a projector, and a decoder that attends to pictures."""

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.families.base import Embedded, MultimodalModel
from models.families.mllama.config import MllamaConfig
from models.families.mllama.vision import MllamaVision
from models.inputs.batch import Inputs
from models.layers.linear import Maker
from models.sharding.placing import place
from models.text.decoder import TextDecoder
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.pytree import frozen_pytree

__all__ = ["MllamaModel", "TileLayout"]


@frozen_pytree
class TileLayout:
    """Shapes of pictures, see `MllamaVision`.

    Attributes:
        aspect_ratio: number of each picture's shape, from 1. is_tile: which tiles are no padding.
    """

    aspect_ratio: Int32[Array, "images"]
    is_tile: Bool[Array, "images tiles"]


class MllamaModel(MultimodalModel):
    """Three parts: `vision`, `projector`, `text`."""

    def __init__(self, config: MllamaConfig, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = MllamaVision(config.vision, make)
        self.projector = make.linear(config.vision.feature_width, config.text.hidden_size)
        self.text = TextDecoder(config.text, make)

    def image_features(
        self, pixel_values: Float[Array, "images tiles 3 size size"], layout: TileLayout
    ) -> Float[Array, "features hidden_size"]:
        """Features of all tiles, one after another; those of padding as well."""
        features = self.vision(pixel_values, layout.aspect_ratio, layout.is_tile)
        return self.projector(features).reshape(-1, self.config.text.hidden_size)

    def embed_inputs(self, inputs: Inputs) -> Embedded:
        """Embeddings of the tokens, and the features that cross-attention layers read."""
        text, places = self.text.embed(inputs.input_ids), inputs.places
        if inputs.pixel_values is None or places is None:
            return Embedded(text)
        features = self.image_features(inputs.pixel_values, inputs.vision_layout)
        # Pictures are split over all devices, prompts over some: each needs features of the others.
        features = place(self.text.mesh, features, PartitionSpec())
        return Embedded(text, pictures=jnp.take(features, places.row, axis=0, mode="clip"))
