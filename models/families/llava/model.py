"""LLaVA-1.5 as one module: images and token ids to embeddings, embeddings to logits."""

from typing import Any

from models.families.base import MultimodalModel
from models.families.llava.config import LlavaConfig
from models.layers.linear import Maker
from models.text.decoder import TextDecoder
from models.vision.projectors import MlpProjector
from models.vision.vit import VisionTransformer
from vkq_jax.array_types import Array, Float

__all__ = ["LlavaModel"]


class LlavaModel(MultimodalModel):
    """The three parts of a LLaVA-1.5 model: `vision`, `projector`, `text`."""

    def __init__(self, config: LlavaConfig, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = VisionTransformer(config.vision, make)
        self.projector = MlpProjector(
            make,
            config.vision.feature_width,
            config.text.hidden_size,
            config.projector_hidden_act,
            bias=config.multimodal_projector_bias,
        )
        self.text = TextDecoder(config.text, make)

    def image_features(
        self, pixel_values: Float[Array, "images 3 size size"], layout: Any = None
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all images, one image after another."""
        features = self.projector(self.vision(pixel_values))
        return features.reshape(-1, features.shape[-1])
