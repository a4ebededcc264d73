"""InternVL as one module: tiles and token ids to embeddings, embeddings to logits."""

from typing import Any

from models.families.base import MultimodalModel
from models.families.internvl.config import InternVLConfig
from models.layers.linear import Maker
from models.text.decoder import TextDecoder
from models.vision.projectors import MergingProjector
from models.vision.vit import VisionTransformer
from vkq_jax.array_types import Array, Float

__all__ = ["InternVLModel"]


class InternVLModel(MultimodalModel):
    """The three parts of an InternVL model: `vision`, `projector`, `text`."""

    def __init__(self, config: InternVLConfig, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = VisionTransformer(config.vision, make)
        self.projector = MergingProjector(
            make,
            config.vision.feature_width,
            config.text.hidden_size,
            config.projector_hidden_act,
            merge=config.merge,
        )
        self.text = TextDecoder(config.text, make)

    def image_features(
        self, pixel_values: Float[Array, "tiles 3 size size"], layout: Any = None
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all tiles, one tile after another."""
        features = self.projector(self.vision(pixel_values))
        return features.reshape(-1, features.shape[-1])
