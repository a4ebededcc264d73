"""Gemma 4 as one module."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from models.families.base import Embedded, MultimodalModel
from models.families.gemma4.config import Gemma4Config
from models.inputs.batch import Inputs
from models.layers.linear import Maker
from models.layers.norms import rms_norm
from models.text.decoder import TextDecoder
from models.vision.grid_tower import GridTransformer
from models.vision.patch_grid import PatchGrids
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["Gemma4Model"]


class Gemma4Model(MultimodalModel):
    """Three parts: `vision`, `projector`, `text`."""

    def __init__(self, config: Gemma4Config, make: Maker):
        """Random parameters."""
        self.config = config
        self.make_tower(config, make)
        self.text = TextDecoder(config.text, make)
        holders = (*config.visual_token_ids, config.audio_token_id)
        self.holders = tuple(token for token in holders if token is not None)
        self.pad_token_id = config.pad_token_id

    def make_tower(self, config: Gemma4Config, make: Maker) -> None:
        """Makes `vision` and `projector`."""
        self.vision = GridTransformer(config.vision, make)
        self.projector = _Projector(config, make)

    def image_features(
        self, pixel_values: Float[Array, "F P patch_width"], layout: PatchGrids
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all pictures, in the order of the tokens."""
        patches, _ = self.vision(2 * (pixel_values - 0.5), layout)
        return layout.in_order(self.projector(patches))

    def text_ids(self, input_ids: Int32[Array, "B T"]) -> Int32[Array, "B T"]:
        """See `MultimodalModel.text_ids`; tokens of pictures, clips and speech count as padding."""
        held = jnp.isin(input_ids, jnp.asarray(self.holders, jnp.int32))
        return jnp.where(held, jnp.int32(self.pad_token_id), input_ids)

    def embed_inputs(self, inputs: Inputs) -> Embedded:
        """See `MultimodalModel.embed_inputs`; layers may have inputs of their own."""
        embedded = super().embed_inputs(inputs)
        if self.config.text.per_layer_inputs is None:
            return embedded
        return dataclasses.replace(embedded, tokens=self.text_ids(inputs.input_ids))


class _Projector(nnx.Module):
    """Means of squares of patches, a norm, one matrix."""

    def __init__(self, config: Gemma4Config, make: Maker):
        encoder = config.vision.encoder
        self.area, self.epsilon = config.vision.merge**2, encoder.layer_norm_eps
        self.standardize, width = config.standardize, encoder.hidden_size
        if config.standardize:
            self.std_bias = nnx.Param(jnp.zeros(width, make.param_dtype))
            self.std_scale = nnx.Param(jnp.ones(width, make.param_dtype))
        self.embedding_projection = make.linear(width, config.text.hidden_size, bias=False)

    def __call__(self, patches: Float[Array, "F P width"]) -> Float[Array, "F blocks hidden_size"]:
        """One visual token's embedding for each block; patches lie in merge-block order."""
        frames, count, width = patches.shape
        blocks = patches.reshape(frames, count // self.area, self.area, width)
        x = blocks.astype(jnp.float32).mean(2).astype(patches.dtype)
        x = x.astype(jnp.float32) * width**0.5
        if self.standardize:
            bias, scale = (p[...].astype(jnp.float32) for p in (self.std_bias, self.std_scale))
            x = (x - bias[None, None]) * scale[None, None]
        x = rms_norm(x.astype(patches.dtype), self.epsilon).astype(patches.dtype)
        return self.embedding_projection(x)
