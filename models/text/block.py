"""A decoder block: attention, then a gated MLP, each added to the residual stream."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.attention import Attend
from models.layers.linear import Maker
from models.layers.mlp import GatedMlp
from models.layers.moe import MoeMlp
from models.layers.norms import LayerNorm, OffsetRmsNorm, RmsNorm, WideRmsNorm, rms_norm
from models.layers.rope import apply_rope, pairs_to_halves
from models.sharding.placing import place_sequences
from models.text.config import TextConfig
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["Block", "Projections", "decoder_mlp", "decoder_norm"]


def decoder_norm(config: TextConfig, make: Maker, width: int | None = None) -> nnx.Module:
    """The norm of this decoder, over `hidden_size` channels by default."""
    width = config.hidden_size if width is None else width
    options = {"epsilon": config.rms_norm_eps, "param_dtype": make.param_dtype}
    if config.layer_norms:
        return LayerNorm(width, bias=False, **options)
    kind = WideRmsNorm if config.wide_norms else RmsNorm
    return (OffsetRmsNorm if config.offset_norms else kind)(width, **options)


class Block(nnx.Module):
    """One layer; parts have the names of Hugging Face's files."""

    def __init__(self, config: TextConfig, make: Maker, *, has_keys: bool = True):
        """Random parameters; `has_keys` as for `Projections`."""
        self.config, self.mesh = config, make.mesh
        self.input_layernorm = decoder_norm(config, make)
        self.self_attn = Projections(config, make, has_keys=has_keys)
        if not config.parallel_blocks:
            self.post_attention_layernorm = decoder_norm(config, make)
        if config.sandwich_norms:
            self.pre_feedforward_layernorm = decoder_norm(config, make)
            self.post_feedforward_layernorm = decoder_norm(config, make)
        self.mlp = decoder_mlp(config, make)

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
        """The next residual stream, the next carry, and what `attend` gave.

        Args:
            x: the residual stream.
            cos, sin: of RoPE.
            layer, carry: what `attend` takes besides queries, keys and values, see `Attend`.
            query_scale: factor of each token's queries.
            per_layer: the layer's own input, see `PerLayerInputs`.
        """
        normed = self.input_layernorm(x)
        query, key, value, gate = self.self_attn(normed, cos, sin)
        if query_scale is not None:
            query = query * query_scale[:, :, None, None]
        mixed, carry, out = attend(layer, query, key, value, carry)
        mixed = mixed.astype(x.dtype)
        mixed = mixed if gate is None else mixed * jax.nn.sigmoid(gate)
        mixed = self.self_attn.o_proj(mixed.reshape(*x.shape[:2], -1))
        mixed = place_sequences(self.mesh, mixed)  # summed up over devices here, and after the MLP
        if self.config.parallel_blocks:
            return x + mixed + place_sequences(self.mesh, self.mlp(normed)), carry, out
        if self.config.sandwich_norms:
            x = x + self.post_attention_layernorm(mixed)
            added = place_sequences(self.mesh, self.feed_forward(x))
            return x + self.post_feedforward_layernorm(added), carry, out
        x = x + self._residual(mixed)
        added = place_sequences(self.mesh, self.mlp(self.post_attention_layernorm(x)))
        return x + self._residual(added), carry, out

    def feed_forward(self, x: Float[Array, "B T hidden_size"]) -> Float[Array, "B T hidden_size"]:
        """The MLP's output for a residual stream, between sandwich norms."""
        return self.mlp(self.pre_feedforward_layernorm(x))

    def _residual(self, added: Array) -> Array:
        multiplier = self.config.residual_multiplier
        return added if multiplier == 1.0 else added * multiplier


def decoder_mlp(config: TextConfig, make: Maker) -> GatedMlp | MoeMlp:
    """The MLP of a block of this decoder."""
    if config.moe is not None:
        return MoeMlp(make, config.hidden_size, config.moe, config.hidden_act)
    return GatedMlp(
        make,
        config.hidden_size,
        config.intermediate_size,
        config.hidden_act,
        bias=config.mlp_bias,
    )


class Projections(nnx.Module):
    """Queries, keys and values of attention, and the projection of its output."""

    def __init__(self, config: TextConfig, make: Maker, *, has_keys: bool = True):
        """Random parameters; without those of keys and values where another layer makes them."""
        self.config, self.has_keys = config, has_keys
        query_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        gates = 2 if config.attention_gate else 1  # of each head: its queries, then its gate
        self.q_proj = make.linear(config.hidden_size, gates * query_width, bias=bias)
        if has_keys:
            self.k_proj = make.linear(config.hidden_size, kv_width, bias=bias)
        if has_keys and not config.keys_as_values:
            self.v_proj = make.linear(config.hidden_size, kv_width, bias=bias)
        self.o_proj = make.linear(
            query_width, config.hidden_size, bias=config.attention_output_bias
        )
        if config.query_key_norm:
            self.q_norm = decoder_norm(config, make, config.head_dim)
            if has_keys:
                self.k_norm = decoder_norm(config, make, config.head_dim)

    def __call__(
        self,
        x: Float[Array, "B T hidden_size"],
        cos: Float[Array, "B T half"],
        sin: Float[Array, "B T half"],
    ) -> tuple[
        Float[Array, "B T N H"],
        Float[Array, "B T K H"] | None,
        Float[Array, "B T K H"] | None,
        Float[Array, "B T N H"] | None,
    ]:
        """Queries and keys with RoPE, values, and what the queries' attention is multiplied by.

        Keys and values are None where another layer makes them.
        """
        query, gate = self.query(x)
        if not self.has_keys:
            return apply_rope(query, cos, sin), None, None, gate
        key, value = self.key_value(x)
        if self.config.rope.interleaved:
            query, key = (pairs_to_halves(each, self.config.rope.head_dim) for each in (query, key))
        return apply_rope(query, cos, sin), apply_rope(key, cos, sin), value, gate

    def query(
        self, x: Float[Array, "B T hidden_size"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N H"] | None]:
        """Queries without RoPE, and what their attention is multiplied by, if any."""
        query, gate = self.q_proj(x), None
        if self.config.attention_gate:
            both = query.reshape(*x.shape[:2], -1, 2 * self.config.head_dim)
            query, gate = jnp.split(both, 2, axis=-1)
        query = self._heads(query)
        return self.q_norm(query) if self.config.query_key_norm else query, gate

    def key_value(
        self, x: Float[Array, "B T hidden_size"]
    ) -> tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Keys without RoPE, and values."""
        key = value = self._heads(self.k_proj(x))
        if not self.config.keys_as_values:
            value = self._heads(self.v_proj(x))
        if self.config.value_norm:
            value = rms_norm(value, self.config.rms_norm_eps).astype(value.dtype)
        return self.k_norm(key) if self.config.query_key_norm else key, value

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], -1, self.config.head_dim)
