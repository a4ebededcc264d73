"""LLaVA-NeXT as one module."""

from typing import Any

import jax.numpy as jnp

from models.families.llava.model import LlavaModel
from models.families.llava_next.config import LlavaNextConfig
from models.layers.linear import Maker
from vkq_jax.array_types import Array, Float

__all__ = ["LlavaNextModel"]


class LlavaNextModel(LlavaModel):
    """LLaVA's parts and `image_newline`, the embedding that ends a row of features."""

    def __init__(self, config: LlavaNextConfig, make: Maker):
        """Random parameters."""
        super().__init__(config, make)
        self.image_newline = make.normal(config.text.hidden_size)

    def image_features(
        self, pixel_values: Float[Array, "tiles 3 size size"], layout: Any = None
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens, as the `TileLayout` puts them together."""
        features = super().image_features(pixel_values)
        newline = self.image_newline[...].astype(features.dtype)
        features = jnp.concatenate([features, newline[None]])
        corners = jnp.take(features, layout.rows, axis=0, mode="clip")
        weighted = corners * layout.weights[..., None]
        return weighted.sum(axis=1).astype(features.dtype)
