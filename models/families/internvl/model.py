"""InternVL as one module: tiles and token ids to embeddings, embeddings to logits."""

from models.families.fixed_grid import FixedGridModel
from models.families.internvl.config import InternVLConfig
from models.layers.linear import Maker
from models.vision.projectors import MergingProjector

__all__ = ["InternVLModel"]


class InternVLModel(FixedGridModel):
    """The three parts of an InternVL model: `vision`, `projector`, `text`; a tile is an image."""

    def make_projector(self, config: InternVLConfig, make: Maker) -> MergingProjector:
        """The MLP over squares of neighbouring features."""
        return MergingProjector(
            make,
            config.vision.feature_width,
            config.text.hidden_size,
            config.projector_hidden_act,
            merge=config.merge,
        )
