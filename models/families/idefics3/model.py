"""Idefics3 and SmolVLM as one module: tiles and token ids to embeddings and logits."""

import jax.numpy as jnp

from models.families.fixed_grid import FixedGridModel
from models.families.idefics3.config import Idefics3Config
from models.families.idefics3.tiles import TilePatches
from models.layers.attention import attend_with_mask
from models.layers.linear import Maker
from models.vision.projectors import LinearProjector
from vkq_jax.array_types import Array, Float

__all__ = ["Idefics3Model"]


class Idefics3Model(FixedGridModel):
    """The three parts: `vision`, `projector`, `text`; a tile is an image."""

    config: Idefics3Config

    def make_projector(self, config: Idefics3Config, make: Maker) -> LinearProjector:
        """One layer over squares of neighbouring features."""
        return LinearProjector(
            make,
            config.vision.feature_width,
            config.text.hidden_size,
            bias=False,
            merge=config.merge,
        )

    def image_features(
        self, pixel_values: Float[Array, "tiles 3 size size"], layout: TilePatches | None = None
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all tiles, one tile after another."""
        if layout is None:
            return super().image_features(pixel_values)
        attend = None
        if (visible := layout.visible) is not None:
            # Patches that are padding see the others, too.
            shape = (*visible.shape, visible.shape[-1])
            mask = jnp.broadcast_to(visible[:, None], shape)
            scale = self.config.vision.encoder.logits_scale
            attend = attend_with_mask(lambda layer: mask, logits_scale=scale)
        features = self.projector(self.vision(pixel_values, attend, positions=layout.positions))
        return features.reshape(-1, features.shape[-1])
