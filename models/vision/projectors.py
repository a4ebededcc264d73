"""The projector: image features to the text tower's width."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.families.llava.config import LlavaConfig
from models.layers.norms import activate
from vkq_jax.array_types import Array, Float

__all__ = ["Projector"]


class Projector(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        config: LlavaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
    ):
        """Random parameters of `param_dtype` (default: `dtype`); computes in `dtype`."""

        def linear(inputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                config.text.width,
                use_bias=config.projector_bias,
                dtype=dtype,
                param_dtype=dtype if param_dtype is None else param_dtype,
                rngs=rngs,
            )

        self.activation = config.projector_activation
        self.expand = linear(config.vision.feature_width)
        self.project = linear(config.text.width)

    def __call__(
        self, features: Float[Array, "images features width"]
    ) -> Float[Array, "images features text_width"]:
        """One visual token's embedding for each feature."""
        return self.project(activate(self.expand(features), self.activation))
