"""A block of Gemma 4's decoder: experts beside the MLP, inputs of the layer's own, a factor."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from models.layers.activations import activate
from models.layers.attention import Attend
from models.layers.linear import Maker
from models.layers.moe import Experts, MoeConfig, best_experts
from models.layers.norms import rms_norm
from models.text.block import Block, decoder_norm
from models.text.config import PerLayerInputs, TextConfig
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["Gemma4Block", "PerLayerEmbedding"]


class Gemma4Block(Block):
    """`Block` with sandwich norms and what Gemma 4 adds; parts have the names of the files."""

    def __init__(self, config: TextConfig, make: Maker, *, has_keys: bool = True):
        """Random parameters; `has_keys` as for `models.text.block.Projections`."""
        super().__init__(config, make, has_keys=has_keys)
        if (moe := config.moe_beside_mlp) is not None:
            self.router = _Router(config, moe, make)
            self.experts = Experts(make, config.hidden_size, moe, config.hidden_act)
            self.post_feedforward_layernorm_1 = decoder_norm(config, make)
            self.post_feedforward_layernorm_2 = decoder_norm(config, make)
            self.pre_feedforward_layernorm_2 = decoder_norm(config, make)
        if (own := config.per_layer_inputs) is not None:
            width = config.hidden_size
            self.per_layer_input_gate = make.linear(width, own.width, bias=False)
            self.per_layer_projection = make.linear(own.width, width, bias=False)
            self.post_per_layer_input_norm = decoder_norm(config, make)
        self.layer_scalar = nnx.Param(jnp.ones(1, make.param_dtype))

    def __call__(
        self,
        x: Float[Array, "B T hidden_size"],
        cos: Float[Array, "B T half"],
        sin: Float[Array, "B T half"],
        layer: Int32[Array, ""] | int,
        attend: Attend,
        carry: Any,
        query_scale: Float[Array, "B T"] | None = None,
        per_layer: Float[Array, "B T width"] | None = None,
    ) -> tuple[Float[Array, "B T hidden_size"], Any, Any]:
        """See `Block.__call__`."""
        x, carry, out = super().__call__(x, cos, sin, layer, attend, carry, query_scale)
        if per_layer is not None:
            gate = activate(self.per_layer_input_gate(x), self.config.hidden_act)
            own = self.per_layer_projection(gate * per_layer)
            x = x + self.post_per_layer_input_norm(own)
        return x * self.layer_scalar[...].astype(x.dtype), carry, out

    def feed_forward(self, x: Float[Array, "B T hidden_size"]) -> Float[Array, "B T hidden_size"]:
        """See `Block.feed_forward`; the experts read the residual stream, too."""
        dense = super().feed_forward(x)
        if self.config.moe_beside_mlp is None:
            return dense
        tokens = x.reshape(-1, x.shape[-1])
        expert, weight = self.router(tokens)
        mixed = self.experts(self.pre_feedforward_layernorm_2(tokens), expert, weight)
        mixed = self.post_feedforward_layernorm_2(mixed.reshape(x.shape))
        return self.post_feedforward_layernorm_1(dense) + mixed


class PerLayerEmbedding(nnx.Module):
    """Embeddings of tokens that each layer adds by itself; parts have the names of the files."""

    def __init__(self, config: TextConfig, own: PerLayerInputs, make: Maker):
        """Random parameters."""
        self.own, self.layers = own, config.num_hidden_layers
        width = self.layers * own.width
        self.embed_tokens_per_layer = make.embedding(own.vocab_size, width)
        self.per_layer_model_projection = make.linear(config.hidden_size, width, bias=False)
        self.per_layer_projection_norm = decoder_norm(config, make, own.width)

    def __call__(
        self, hidden: Float[Array, "B T hidden_size"], tokens: Int32[Array, "B T"]
    ) -> Float[Array, "L B T width"]:
        """The inputs of all layers, of embeddings and of the tokens that they stand for."""
        shape = (*tokens.shape, self.layers, self.own.width)
        of_token = self.embed_tokens_per_layer(tokens).reshape(shape)
        of_token = of_token * jnp.asarray(self.own.width**0.5, hidden.dtype)
        seen = self.per_layer_model_projection(hidden) * hidden.shape[-1] ** -0.5
        seen = self.per_layer_projection_norm(seen.reshape(shape))
        return jnp.moveaxis((seen + of_token) * 2**-0.5, 2, 0)


class _Router(nnx.Module):
    """Which experts a token goes through, and their weights."""

    def __init__(self, config: TextConfig, moe: MoeConfig, make: Maker):
        self.count, self.epsilon = moe.num_experts_per_tok, config.rms_norm_eps
        self.scale = nnx.Param(jnp.ones(config.hidden_size, make.param_dtype))
        self.proj = make.linear(config.hidden_size, moe.num_experts, bias=False)
        self.per_expert_scale = nnx.Param(jnp.ones(moe.num_experts, make.param_dtype))

    def __call__(
        self, tokens: Float[Array, "N width"]
    ) -> tuple[Int32[Array, "N k"], Float[Array, "N k"]]:
        """Numbers and weights of each token's experts."""
        scale = self.scale[...].astype(tokens.dtype)[None] * tokens.shape[-1] ** -0.5
        normed = rms_norm(tokens, self.epsilon).astype(tokens.dtype) * scale
        weight, expert = best_experts(self.proj(normed), self.count)
        weight = weight / weight.sum(-1, keepdims=True)
        weight = weight * self.per_expert_scale[...].astype(jnp.float32)[expert]
        return expert, weight.astype(tokens.dtype)
