"""Gemma 3 as one module."""

from models.families.fixed_grid import FixedGridModel
from models.families.gemma3.config import Gemma3Config
from models.layers.linear import Maker
from models.vision.projectors import PoolingProjector

__all__ = ["Gemma3Model"]


class Gemma3Model(FixedGridModel):
    """SigLIP, pooled features, a Gemma 3 decoder."""

    def make_projector(self, config: Gemma3Config, make: Maker) -> PoolingProjector:
        """See `FixedGridModel.make_projector`."""
        return PoolingProjector(
            make,
            config.vision.feature_width,
            config.text.hidden_size,
            pool=config.pool,
            epsilon=config.vision.encoder.layer_norm_eps,
        )
