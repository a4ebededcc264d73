"""Gemma 3 as one module."""

from typing import Any

from models.families.base import MultimodalModel
from models.families.gemma3.config import Gemma3Config
from models.layers.linear import Maker
from models.text.decoder import TextDecoder
from models.vision.projectors import PoolingProjector
from models.vision.vit import VisionTransformer
from vkq_jax.array_types import Array, Float

__all__ = ["Gemma3Model"]


class Gemma3Model(MultimodalModel):
    """The three parts of a Gemma 3 model: `vision`, `projector`, `text`."""

    def __init__(self, config: Gemma3Config, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = VisionTransformer(config.vision, make)
        self.projector = PoolingProjector(
            make,
            config.vision.feature_width,
            config.text.hidden_size,
            pool=config.pool,
            epsilon=config.vision.encoder.layer_norm_eps,
        )
        self.text = TextDecoder(config.text, make)

    def image_features(
        self, pixel_values: Float[Array, "images 3 size size"], layout: Any = None
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all images, one image after another."""
        features = self.projector(self.vision(pixel_values))
        return features.reshape(-1, features.shape[-1])
