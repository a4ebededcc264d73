"""Mistral Small 3 and Pixtral as one module: pictures and token ids to embeddings and logits."""

from models.families.base import MultimodalModel
from models.families.mistral3.config import Mistral3Config
from models.layers.linear import Maker
from models.text.decoder import TextDecoder
from models.vision.grid_tower import GridTransformer
from models.vision.patch_grid import PatchGrids
from models.vision.projectors import MlpProjector, NormedMergingProjector
from vkq_jax.array_types import Array, Float

__all__ = ["Mistral3Model"]


class Mistral3Model(MultimodalModel):
    """Three parts: `vision`, `projector` and `text`."""

    def __init__(self, config: Mistral3Config, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = GridTransformer(config.vision, make)
        width, hidden_size = config.vision.encoder.hidden_size, config.text.hidden_size
        act, bias = config.projector_hidden_act, config.multimodal_projector_bias
        if config.norm_and_merge:
            self.projector = NormedMergingProjector(
                make,
                width,
                hidden_size,
                act,
                bias=bias,
                merge=config.vision.merge,
                epsilon=config.text.rms_norm_eps,
            )
        else:
            self.projector = MlpProjector(make, width, hidden_size, act, bias=bias)
        self.text = TextDecoder(config.text, make)

    def image_features(
        self, pixel_values: Float[Array, "images P patch_width"], layout: PatchGrids
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all pictures, in the order of the tokens."""
        patches, _ = self.vision(pixel_values, layout)
        return layout.in_order(self.projector(patches))
