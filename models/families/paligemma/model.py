"""PaliGemma as one module."""

from models.families.fixed_grid import FixedGridModel
from models.families.paligemma.config import PaliGemmaConfig
from models.layers.linear import Maker
from models.vision.projectors import LinearProjector

__all__ = ["PaliGemmaModel"]


class PaliGemmaModel(FixedGridModel):
    """SigLIP, one linear layer, a Gemma or Gemma 2 decoder."""

    def make_projector(self, config: PaliGemmaConfig, make: Maker) -> LinearProjector:
        """See `FixedGridModel.make_projector`."""
        return LinearProjector(make, config.vision.feature_width, config.text.hidden_size)
