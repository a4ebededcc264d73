"""The CLIP vision tower: images to patch features."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.families.llava.config import VisionConfig
from models.layers.attention import dense_attention
from models.layers.layer_scan import scan_layers, stack_layers
from models.layers.norms import LayerNorm, activate
from vkq_jax.array_types import Array, Float

__all__ = ["ClipVisionTower"]


class ClipVisionTower(nnx.Module):
    """A vision transformer over patches and one class token; holds only the layers it needs."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
    ):
        """Random parameters of `param_dtype` (default: `dtype`); computes in `dtype`."""
        param_dtype = dtype if param_dtype is None else param_dtype
        self.config, self.dtype = config, jnp.dtype(dtype)
        normal = nnx.initializers.normal(0.02)
        self.patch_embedding = nnx.Linear(
            3 * config.patch_size**2,
            config.width,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.class_embedding = nnx.Param(normal(rngs.params(), (config.width,), param_dtype))
        self.position_embedding = nnx.Param(
            normal(rngs.params(), (config.num_patches + 1, config.width), param_dtype)
        )
        self.embedding_norm = LayerNorm(
            config.width, epsilon=config.norm_epsilon, param_dtype=param_dtype
        )
        self.layers = stack_layers(
            lambda rngs: _Block(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype),
            config.num_layers,
            rngs,
        )

    def __call__(
        self, pixel_values: Float[Array, "images 3 size size"]
    ) -> Float[Array, "images features width"]:
        """Features of each image, row by row (after the class token, if that is kept).

        Features of several layers are concatenated along the channels, in the order configured.
        """
        x = self.embedding_norm(self._embed(pixel_values))
        wanted = self.config.feature_layers
        only_last = set(wanted) == {self.config.num_layers}

        def step(block, layer, x):
            out = block(x)
            return out, None if only_last else out

        last, outputs = scan_layers(self.layers, step, x, self.config.num_layers)
        chosen = [
            last if only_last else x if index == 0 else outputs[index - 1] for index in wanted
        ]
        first = 0 if self.config.keep_class_token else 1
        return jnp.concatenate(chosen, axis=-1)[:, first:]

    def _embed(
        self, pixel_values: Float[Array, "images 3 size size"]
    ) -> Float[Array, "images positions width"]:
        images, patch = pixel_values.shape[0], self.config.patch_size
        side = self.config.image_size // patch
        # A convolution whose stride is its kernel is one product per patch. A rim that does not
        # fill a patch is left out.
        x = pixel_values[:, :, : side * patch, : side * patch].astype(self.dtype)
        x = x.reshape(images, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
        x = self.patch_embedding(x.reshape(images, side * side, 3 * patch * patch))
        first = self.class_embedding[...].astype(x.dtype)
        first = jnp.broadcast_to(first, (images, 1, self.config.width))
        positions = self.position_embedding[...].astype(x.dtype)
        return jnp.concatenate([first, x], axis=1) + positions[None]


class _Block(nnx.Module):
    """Self-attention over all positions of an image, then an MLP, each behind a norm."""

    def __init__(
        self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, param_dtype: DTypeLike
    ):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def norm() -> LayerNorm:
            return LayerNorm(config.width, epsilon=config.norm_epsilon, param_dtype=param_dtype)

        self.config = config
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.query, self.key, self.value, self.output = (
            linear(config.width, config.width) for _ in range(4)
        )
        self.expand = linear(config.width, config.mlp_width)
        self.contract = linear(config.mlp_width, config.width)

    def __call__(
        self, x: Float[Array, "images positions width"]
    ) -> Float[Array, "images positions width"]:
        heads = (*x.shape[:2], self.config.num_heads, x.shape[-1] // self.config.num_heads)
        normed = self.attention_norm(x)
        query, key, value = (
            project(normed).reshape(heads) for project in (self.query, self.key, self.value)
        )
        mixed = dense_attention(query, key, value, None, logits_scale=heads[-1] ** -0.5)
        x = x + self.output(mixed.reshape(x.shape))
        hidden = activate(self.expand(self.mlp_norm(x)), self.config.activation)
        return x + self.contract(hidden)
