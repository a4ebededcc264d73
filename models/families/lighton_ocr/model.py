"""LightOnOCR as one module: pictures and token ids to embeddings and logits."""

import dataclasses

import jax.numpy as jnp

from models.families.any_grid import AnyGridModel
from models.families.lighton_ocr.config import LightOnOcrConfig
from models.layers.activations import Activation
from models.layers.linear import Maker
from models.vision.patch_grid import PatchGrids
from models.vision.projectors import NormedMergingProjector
from vkq_jax.array_types import Array, Float

__all__ = ["LightOnOcrModel"]


class LightOnOcrModel(AnyGridModel):
    """Three parts: `vision`, `projector` and `text`."""

    config: LightOnOcrConfig

    def make_projector(self, config: LightOnOcrConfig, make: Maker) -> NormedMergingProjector:
        """See `AnyGridModel.make_projector`."""
        return NormedMergingProjector(
            make,
            config.vision.encoder.hidden_size,
            config.text.hidden_size,
            Activation.GELU,
            bias=False,
            merge=config.merge,
            epsilon=config.text.rms_norm_eps,
        )

    def image_features(
        self, pixel_values: Float[Array, "images P patch_width"], layout: PatchGrids
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all pictures, in the order of the tokens."""
        patches, _ = self.vision(pixel_values, layout)
        merge = self.config.merge
        whole = dataclasses.replace(layout, sizes=layout.sizes // merge * merge)
        rows, columns = jnp.moveaxis(whole.rows_and_columns(patches.shape[1], merge), -1, 0)
        place = jnp.minimum(rows * layout.sizes[:, 1:] + columns, patches.shape[1] - 1)
        blocks = jnp.take_along_axis(patches, place[..., None], axis=1)
        kept = blocks.shape[1] // merge**2 * merge**2
        return layout.in_order(self.projector(blocks[:, :kept]))
