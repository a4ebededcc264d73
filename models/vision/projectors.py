"""Projectors: image features to the text decoder's width."""

from flax import nnx

from models.layers.activations import Activation, activate
from models.layers.linear import Maker
from vkq_jax.array_types import Array, Float

__all__ = ["MlpProjector"]


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
