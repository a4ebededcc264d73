"""Projectors: image features to the text decoder's width."""

import math

import jax.numpy as jnp
from flax import nnx

from models.layers.activations import Activation, activate
from models.layers.linear import Maker
from models.layers.mlp import GatedMlp
from models.layers.norms import LayerNorm, OffsetRmsNorm, RmsNorm
from vkq_jax.array_types import Array, Float

__all__ = [
    "ConvolvingMerger",
    "GatedMergingProjector",
    "LinearProjector",
    "MergingProjector",
    "MlpProjector",
    "NormedMergingProjector",
    "PatchMerger",
    "PoolingProjector",
    "merge_neighbours",
]


class MlpProjector(nnx.Module):
    """linear_2(act(linear_1(x))): LLaVA-1.5, arXiv 2310.03744."""

    def __init__(
        self, make: Maker, feature_width: int, hidden_size: int, act: Activation, *, bias: bool
    ):
        """Two linear layers to `hidden_size`, both with a bias or both without."""
        self.act = act
        self.linear_1 = make.linear(feature_width, hidden_size, bias=bias)
        self.linear_2 = make.linear(hidden_size, hidden_size, bias=bias)

    def __call__(
        self, features: Float[Array, "images features feature_width"]
    ) -> Float[Array, "images features hidden_size"]:
        """One visual token's embedding for each feature."""
        return self.linear_2(activate(self.linear_1(features), self.act))


class LinearProjector(nnx.Module):
    """One linear layer: PaliGemma, arXiv 2407.07726; Idefics3, arXiv 2408.12637, merges first."""

    def __init__(
        self,
        make: Maker,
        feature_width: int,
        hidden_size: int,
        *,
        bias: bool = True,
        merge: int = 1,
    ):
        """A square of `merge` x `merge` features becomes one visual token."""
        self.merge = merge
        self.linear = make.linear(feature_width * merge**2, hidden_size, bias=bias)

    def __call__(
        self, features: Float[Array, "images features feature_width"]
    ) -> Float[Array, "images merged hidden_size"]:
        """Embeddings of the visual tokens of each image, row by row."""
        return self.linear(features if self.merge == 1 else _merge_square(features, self.merge))


class PoolingProjector(nnx.Module):
    """Means of squares of neighbouring features, a norm, one matrix: Gemma 3, arXiv 2503.19786."""

    def __init__(
        self, make: Maker, feature_width: int, hidden_size: int, *, pool: int, epsilon: float
    ):
        """A square of `pool` x `pool` features becomes one visual token."""
        self.pool = pool
        self.mm_soft_emb_norm = OffsetRmsNorm(
            feature_width, epsilon=epsilon, param_dtype=make.param_dtype
        )
        # [in, out] in the files, too.
        self.mm_input_projection_weight = make.normal(feature_width, hidden_size)

    def __call__(
        self, features: Float[Array, "images features feature_width"]
    ) -> Float[Array, "images pooled hidden_size"]:
        """Embeddings of the visual tokens of each image, row by row; an odd rim is left out."""
        images, count, width = features.shape
        side, pool = math.isqrt(count), self.pool
        kept = side // pool * pool
        grid = features.reshape(images, side, side, width)[:, :kept, :kept]
        squares = grid.reshape(images, side // pool, pool, side // pool, pool, width)
        means = squares.mean((2, 4), dtype=jnp.float32).astype(features.dtype)
        normed = self.mm_soft_emb_norm(means.reshape(images, -1, width))
        return normed @ self.mm_input_projection_weight[...].astype(normed.dtype)


class MergingProjector(MlpProjector):
    """The MLP after a layer norm of neighbouring features side by side: InternVL."""

    def __init__(
        self, make: Maker, feature_width: int, hidden_size: int, act: Activation, *, merge: int
    ):
        """A square of `merge` x `merge` features becomes one visual token."""
        width = feature_width * merge**2
        super().__init__(make, width, hidden_size, act, bias=True)
        self.merge = merge
        self.layer_norm = LayerNorm(width, epsilon=1e-5, param_dtype=make.param_dtype)

    def __call__(
        self, features: Float[Array, "images features feature_width"]
    ) -> Float[Array, "images merged hidden_size"]:
        """Embeddings of the visual tokens of each image, row by row."""
        return super().__call__(self.layer_norm(_merge_square(features, self.merge)))


class GatedMergingProjector(nnx.Module):
    """linear_2(silu(gate) * x) of neighbouring features, after a layer norm or none: Aya Vision.

    linear_1 makes both of them, x first. Source: Aya Vision, arXiv 2505.08751.
    """

    def __init__(
        self,
        make: Maker,
        feature_width: int,
        inner: int,
        hidden_size: int,
        *,
        merge: int,
        epsilon: float | None = None,
    ):
        """A square of `merge` x `merge` features becomes one visual token; None: no norm."""
        width = feature_width * merge**2
        self.merge, self.normed = merge, epsilon is not None
        if epsilon is not None:
            self.layernorm = LayerNorm(width, epsilon=epsilon, param_dtype=make.param_dtype)
        self.linear_1 = make.linear(width, inner)
        self.linear_2 = make.linear(inner // 2, hidden_size)

    def __call__(
        self, features: Float[Array, "images features feature_width"]
    ) -> Float[Array, "images merged hidden_size"]:
        """Embeddings of the visual tokens of each image, row by row."""
        squares = _merge_square(features, self.merge)
        both = self.linear_1(self.layernorm(squares) if self.normed else squares)
        x, gate = jnp.split(both, 2, axis=-1)
        return self.linear_2(activate(gate, Activation.SILU) * x)


class ConvolvingMerger(nnx.Module):
    """mlp(gelu(norm(proj(downsample(x))))) of a block's patches: GLM-4.1V, arXiv 2507.01006."""

    def __init__(
        self, make: Maker, width: int, hidden_size: int, inner: int, act: Activation, *, merge: int
    ):
        """Blocks of `merge` x `merge` patches of `width` channels to `hidden_size` channels."""
        self.merge = merge
        self.downsample = make.linear(width * merge**2, hidden_size)
        self.proj = make.linear(hidden_size, hidden_size, bias=False)
        self.post_projection_norm = LayerNorm(
            hidden_size, epsilon=1e-5, param_dtype=make.param_dtype
        )
        self.mlp = GatedMlp(make, hidden_size, inner, act, bias=False)

    def __call__(
        self, patches: Float[Array, "images patches width"]
    ) -> Float[Array, "images blocks hidden_size"]:
        """One visual token's embedding for each block; patches lie in merge-block order."""
        x = self.downsample(_merge_block(patches, self.merge))
        return self.mlp(activate(self.post_projection_norm(self.proj(x)), Activation.GELU))


class NormedMergingProjector(MlpProjector):
    """The MLP after an RMS norm and a linear layer over blocks of neighbours: Mistral Small 3."""

    def __init__(
        self,
        make: Maker,
        feature_width: int,
        hidden_size: int,
        act: Activation,
        *,
        bias: bool,
        merge: int,
        epsilon: float,
    ):
        """A block of `merge` x `merge` patches becomes one visual token."""
        super().__init__(make, feature_width, hidden_size, act, bias=bias)
        self.merge = merge
        self.norm = RmsNorm(feature_width, epsilon=epsilon, param_dtype=make.param_dtype)
        self.merging_layer = make.linear(feature_width * merge**2, feature_width, bias=False)

    def __call__(
        self, patches: Float[Array, "images patches feature_width"]
    ) -> Float[Array, "images blocks hidden_size"]:
        """One visual token's embedding for each block; patches lie in merge-block order."""
        blocks = _merge_block(self.norm(patches), self.merge)
        return super().__call__(self.merging_layer(blocks))


def merge_neighbours(
    grid: Float[Array, "images rows columns width"], merge: int
) -> Float[Array, "images merged merged_width"]:
    """Squares of `merge` x `merge` neighbours, row by row, the channels of each side by side.

    Channels of a square are those of its first row's features, from left to right, then of the
    next row's: the "pixel shuffle" of InternVL and others.
    """
    images, rows, columns, width = grid.shape
    squares = grid.reshape(images, rows // merge, merge, columns // merge, merge, width)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(images, -1, merge * merge * width)


def _merge_square(features: Float[Array, "images features width"], merge: int) -> Array:
    """`merge_neighbours` of features that fill a square, row by row."""
    images, count, width = features.shape
    side = math.isqrt(count)
    return merge_neighbours(features.reshape(images, side, side, width), merge)


def _merge_block(
    patches: Float[Array, "images patches width"], merge: int
) -> Float[Array, "images blocks merged_width"]:
    """The channels of each block of patches, which lie in merge-block order.

    All patches' first channel comes first, then their second, and so on: as a convolution with a
    stride of its kernel's size takes them.
    """
    images, _, width = patches.shape
    blocks = patches.reshape(images, -1, merge**2, width)
    return blocks.swapaxes(-1, -2).reshape(images, -1, merge**2 * width)


class PatchMerger(nnx.Module):
    """linear_fc2(gelu(linear_fc1(x))) of the patches of a block side by side: Qwen-VL's.

    A norm goes before it, of each patch or of the whole block.
    """

    def __init__(
        self,
        make: Maker,
        width: int,
        hidden_size: int,
        *,
        merge: int,
        norm: type[LayerNorm] | type[RmsNorm],
        norm_of_block: bool = False,
        epsilon: float = 1e-6,
    ):
        """Blocks of `merge` x `merge` patches of `width` channels to `hidden_size` channels."""
        self.merge, self.norm_of_block = merge, norm_of_block
        merged = width * merge**2
        self.norm = norm(
            merged if norm_of_block else width, epsilon=epsilon, param_dtype=make.param_dtype
        )
        self.linear_fc1 = make.linear(merged, merged)
        self.linear_fc2 = make.linear(merged, hidden_size)

    def __call__(
        self, patches: Float[Array, "images patches width"]
    ) -> Float[Array, "images blocks hidden_size"]:
        """One visual token's embedding for each block; patches lie in merge-block order."""
        x = patches if self.norm_of_block else self.norm(patches)
        x = x.reshape(x.shape[0], x.shape[1] // self.merge**2, -1)
        x = self.norm(x) if self.norm_of_block else x
        return self.linear_fc2(activate(self.linear_fc1(x), Activation.GELU))
