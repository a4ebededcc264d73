"""LLaVA-1.5 as one module: images and token ids to embeddings, embeddings to logits."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.families.llava.config import LlavaConfig
from models.inputs.batch import Inputs
from models.text.decoder import LlamaTower
from models.vision.clip import ClipVisionTower
from models.vision.projectors import Projector
from vkq_jax.array_types import Array, Float

__all__ = ["LlavaModel"]


class LlavaModel(nnx.Module):
    """The three parts of a LLaVA-1.5 model: `vision`, `projector`, `text`."""

    def __init__(
        self,
        config: LlavaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
    ):
        """Random parameters of `param_dtype` (default: `dtype`); computes in `dtype`."""
        self.config = config
        self.vision = ClipVisionTower(
            config.vision, rngs=rngs, dtype=dtype, param_dtype=param_dtype
        )
        self.projector = Projector(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.text = LlamaTower(config.text, rngs=rngs, dtype=dtype, param_dtype=param_dtype)

    def image_features(
        self, pixel_values: Float[Array, "images 3 size size"]
    ) -> Float[Array, "images features width"]:
        """Embeddings of the visual tokens of each image."""
        return self.projector(self.vision(pixel_values))

    def embed_inputs(self, inputs: Inputs) -> Float[Array, "B T width"]:
        """Embeddings of a prompt: text from the table, visual tokens from the images.

        Row k of the features of all images, one after another, goes to the k-th image token of
        `input_ids.ravel()`.
        """
        text = self.text.embed(inputs.input_ids)
        if inputs.pixel_values is None:
            return text
        features = self.image_features(inputs.pixel_values).reshape(-1, text.shape[-1])
        visual = inputs.visual_mask
        row = (jnp.cumsum(visual.ravel()) - 1).reshape(visual.shape)
        return jnp.where(visual[..., None], jnp.take(features, row, axis=0, mode="clip"), text)
