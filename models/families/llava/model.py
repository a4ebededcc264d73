"""LLaVA-1.5 as one module: images and token ids to embeddings, embeddings to logits."""

from typing import Any

from models.families.fixed_grid import FixedGridModel
from models.layers.linear import Maker
from models.vision.projectors import MlpProjector

__all__ = ["LlavaModel"]


class LlavaModel(FixedGridModel):
    """A vision tower, a two-layer projector, a text decoder."""

    def make_projector(self, config: Any, make: Maker) -> MlpProjector:
        """See `FixedGridModel.make_projector`."""
        return MlpProjector(
            make,
            config.vision.feature_width,
            config.text.hidden_size,
            config.projector_hidden_act,
            bias=config.multimodal_projector_bias,
        )
