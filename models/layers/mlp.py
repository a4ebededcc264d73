"""Multilayer perceptrons of transformer blocks, by Hugging Face's names."""

from flax import nnx

from models.layers.activations import Activation, activate
from models.layers.linear import Maker
from vkq_jax.array_types import Array, Float

__all__ = ["GatedMlp", "Mlp"]


class GatedMlp(nnx.Module):
    """down_proj(act(gate_proj(x)) * up_proj(x))."""

    def __init__(
        self, make: Maker, hidden_size: int, intermediate_size: int, act: Activation, *, bias: bool
    ):
        """Three linear layers, all with a bias or all without."""
        self.act = act
        self.gate_proj = make.linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = make.linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = make.linear(intermediate_size, hidden_size, bias=bias)

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The layers' output, in x's dtype."""
        return self.down_proj(activate(self.gate_proj(x), self.act) * self.up_proj(x))


class Mlp(nnx.Module):
    """fc2(act(fc1(x)))."""

    def __init__(
        self,
        make: Maker,
        hidden_size: int,
        intermediate_size: int,
        act: Activation,
        *,
        bias: bool = True,
    ):
        """Two linear layers, both with a bias or both without."""
        self.act = act
        self.fc1 = make.linear(hidden_size, intermediate_size, bias=bias)
        self.fc2 = make.linear(intermediate_size, hidden_size, bias=bias)

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The layers' output, in x's dtype."""
        return self.fc2(activate(self.fc1(x), self.act))
