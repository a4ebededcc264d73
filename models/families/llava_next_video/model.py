"""LLaVA-NeXT-Video as one module."""

from typing import Any

import jax.numpy as jnp

from models.families.llava_next.model import LlavaNextModel
from models.families.llava_next_video.config import LlavaNextVideoConfig
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["LlavaNextVideoModel"]


class LlavaNextVideoModel(LlavaNextModel):
    """The parts of LLaVA-NeXT; what a visual token shows is pooled before the projector."""

    config: LlavaNextVideoConfig

    def image_features(
        self,
        pixel_values: Float[Array, "tiles 3 size size"],
        layout: Int32[Array, "tokens pooled"] | Any = None,
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens, which pool the features that the layout numbers.

        The number behind the last feature is the newline.
        """
        features = self.vision(pixel_values)
        features = features.reshape(-1, features.shape[-1])
        squares = jnp.take(features, layout, axis=0, mode="clip")
        if self.config.pool_max:
            pooled = squares.max(axis=1)
        else:
            pooled = squares.mean(axis=1, dtype=jnp.float32).astype(features.dtype)
        (embeddings,) = self.projector(pooled[None])
        newline = self.image_newline[...].astype(embeddings.dtype)
        return jnp.where(layout[:, :1] == len(features), newline, embeddings)
