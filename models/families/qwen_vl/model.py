"""Qwen-VL as one module: pictures and token ids to embeddings, embeddings to logits."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.families.base import Embedded, MultimodalModel
from models.families.qwen_vl.config import QwenVLConfig
from models.inputs.batch import Inputs
from models.layers.linear import Maker
from models.layers.norms import LayerNorm, RmsNorm
from models.text.decoder import TextDecoder
from models.vision.grid_tower import GridTransformer
from models.vision.patch_grid import PatchGrids
from models.vision.projectors import PatchMerger
from vkq_jax.array_types import Array, Float

__all__ = ["QwenVLModel"]


class QwenVLModel(MultimodalModel):
    """The parts of a Qwen-VL model: `vision`, `projector`, `deepstack` and `text`."""

    def __init__(self, config: QwenVLConfig, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = GridTransformer(config.vision, make)
        norm = RmsNorm if config.vision.encoder.rms_norms else LayerNorm

        def merger(*, norm_of_block: bool) -> PatchMerger:
            return PatchMerger(
                make,
                config.vision.encoder.hidden_size,
                config.text.hidden_size,
                merge=config.vision.merge,
                norm=norm,
                norm_of_block=norm_of_block,
            )

        self.projector = merger(norm_of_block=False)
        self.deepstack = nnx.List(
            merger(norm_of_block=True) for _ in config.vision.deepstack_layers
        )
        self.text = TextDecoder(config.text, make)

    def image_features(
        self, pixel_values: Float[Array, "F P patch_width"], layout: PatchGrids
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all frames, in the order of the tokens."""
        features, _ = self._features(pixel_values, layout)
        return features

    def embed_inputs(self, inputs: Inputs) -> Embedded:
        """See `MultimodalModel.embed_inputs`; deepstack adds features behind the first layers."""
        text = self.text.embed(inputs.input_ids)
        if inputs.pixel_values is None:
            return Embedded(text)
        features, deep = self._features(inputs.pixel_values, inputs.vision_layout)
        hidden = inputs.place_features(features, text)
        if deep is None:
            return Embedded(hidden)
        nothing = jnp.zeros_like(text)
        place = jax.vmap(inputs.place_features, in_axes=(0, None))
        return Embedded(hidden, place(deep, nothing))

    def _features(
        self, pixel_values: Array, layout: PatchGrids
    ) -> tuple[Float[Array, "features hidden_size"], Float[Array, "A features hidden_size"] | None]:
        patches, kept = self.vision(pixel_values, layout)
        features = layout.in_order(self.projector(patches))
        if kept is None:
            return features, None
        deep = [layout.in_order(merge(x)) for merge, x in zip(self.deepstack, kept, strict=True)]
        return features, jnp.stack(deep)
