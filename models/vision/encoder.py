"""The blocks of vision towers: one encoder with the switches in which families differ."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from models.layers.activations import Activation
from models.layers.attention import Attend
from models.layers.layer_scan import scan_layers, stack_layers
from models.layers.linear import Maker
from models.layers.mlp import GatedMlp, Mlp
from models.layers.norms import LayerNorm, RmsNorm, WideRmsNorm, rms_norm
from models.layers.rope import apply_rope
from vkq_jax.array_types import Array, Float

__all__ = ["Encoder", "EncoderConfig", "encoder_norm"]

_QUERY_KEY_EPSILON = 1e-6

type Rope = tuple[Float[Array, "B P half"], Float[Array, "B P half"]]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """A stack of equal encoder blocks.

    Attributes:
        hidden_size: channels of a patch.
        intermediate_size: hidden channels of a block's MLP.
        num_hidden_layers: blocks that are held and run.
        rms_norms: RMS norms in place of layer norms.
        gated_mlp: an MLP with gate_proj, up_proj and down_proj in place of fc1 and fc2.
        attention_bias: of queries, keys and values.
        query_key_norm: an RMS norm (epsilon 1e-6) over all channels of queries and of keys, before
            they become heads.
        layer_scale: factors per channel of what attention and the MLP add (lambda_1, lambda_2).
        tanh_gates: one factor each for all channels of the same (gate_attn, gate_ffn), of which the
            tanh is taken.
        wide_norms: RMS norms multiply by their weight in float32.
        sandwich_norms: norms after attention and the MLP as well as before them.
        query_key_head_norms: RMS norms over each head's queries and keys.
        head_norms: these, and one without a weight over each head's values; scores are not scaled.
        num_key_value_heads, head_dim: by default as many as query heads, and their share of
            `hidden_size`.
        clipped_linears: inputs and outputs of linear layers are cut to stored ranges.
        axis_halves: RoPE rotates each half of a head by itself, the first by the column and the
            second by the row.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: Activation
    layer_norm_eps: float = 1e-5
    rms_norms: bool = False
    gated_mlp: bool = False
    attention_bias: bool = True
    attention_output_bias: bool = True
    mlp_bias: bool = True
    query_key_norm: bool = False
    layer_scale: bool = False
    tanh_gates: bool = False
    wide_norms: bool = False
    sandwich_norms: bool = False
    query_key_head_norms: bool = False
    head_norms: bool = False
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    clipped_linears: bool = False
    axis_halves: bool = False

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        share = self.hidden_size // self.num_attention_heads
        return share if self.head_dim is None else self.head_dim

    @property
    def logits_scale(self) -> float:
        """The factor of attention scores."""
        return 1.0 if self.head_norms else self.head_width**-0.5


def encoder_norm(config: EncoderConfig, make: Maker, width: int | None = None) -> nnx.Module:
    """The norm of this encoder, over `hidden_size` channels by default."""
    kind = LayerNorm
    if config.rms_norms:
        kind = WideRmsNorm if config.wide_norms else RmsNorm
    return kind(
        config.hidden_size if width is None else width,
        epsilon=config.layer_norm_eps,
        param_dtype=make.param_dtype,
    )


class Encoder(nnx.Module):
    """Blocks one after another; attention is the caller's."""

    def __init__(self, config: EncoderConfig, make: Maker):
        """Random parameters."""
        self.config = config
        self.layers = stack_layers(
            lambda rngs: _Block(config, make.with_rngs(rngs)), config.num_hidden_layers, make.rngs
        )

    def __call__(
        self,
        x: Float[Array, "B P hidden_size"],
        attend: Attend,
        carry: Any = None,
        *,
        rope: Rope | None = None,
        keep: tuple[int, ...] = (),
        unroll: bool = False,
    ) -> tuple[Float[Array, "B P hidden_size"], Any, Any]:
        """Runs all blocks.

        Args:
            x: embedded patches in the compute dtype.
            attend: see `models.layers.attention.Attend`.
            carry: what the first block's `attend` gets.
            rope: cosine and sine of RoPE, if there is one.
            keep: numbers of the blocks whose outputs are returned, increasing.
            unroll: see `models.layers.layer_scan.scan_layers`.

        Returns:
            The last block's output, the last carry, and the outputs to keep [A, B, P, D] or None.
        """
        numbers = jnp.asarray(keep, jnp.int32)
        kept = jnp.zeros((len(keep), *x.shape), x.dtype) if keep else None

        def step(block, layer, state):
            x, inner, kept = state
            x, inner, _ = block(x, rope, layer, attend, inner)
            if kept is not None:
                place = jnp.where(numbers == layer, jnp.arange(len(keep)), len(keep)).min()
                kept = kept.at[place].set(x, mode="drop")
            return (x, inner, kept), None

        (x, carry, kept), _ = scan_layers(
            self.layers, step, (x, carry, kept), self.config.num_hidden_layers, unroll=unroll
        )
        return x, carry, kept


class _Block(nnx.Module):
    """Attention, then an MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: EncoderConfig, make: Maker):
        self.config = config
        width = config.hidden_size
        make = dataclasses.replace(make, clipped=config.clipped_linears)
        self.layer_norm1 = encoder_norm(config, make)
        self.self_attn = _Projections(config, make)
        self.layer_norm2 = encoder_norm(config, make)
        if config.sandwich_norms:
            self.post_norm1 = encoder_norm(config, make)
            self.post_norm2 = encoder_norm(config, make)
        mlp = GatedMlp if config.gated_mlp else Mlp
        self.mlp = mlp(
            make, width, config.intermediate_size, config.hidden_act, bias=config.mlp_bias
        )
        if config.layer_scale:
            self.lambda_1 = nnx.Param(jnp.ones(width, make.param_dtype))
            self.lambda_2 = nnx.Param(jnp.ones(width, make.param_dtype))
        if config.tanh_gates:
            self.gate_attn = nnx.Param(jnp.ones(1, make.param_dtype))
            self.gate_ffn = nnx.Param(jnp.ones(1, make.param_dtype))

    def __call__(
        self, x: Array, rope: Rope | None, layer: Array, attend: Attend, carry: Any
    ) -> tuple[Array, Any, Any]:
        query, key, value = self.self_attn(self.layer_norm1(x), rope)
        mixed, carry, out = attend(layer, query, key, value, carry)
        mixed = mixed.reshape(*x.shape[:2], -1).astype(x.dtype)
        mixed = self.self_attn.out_proj(mixed)
        mixed = self.post_norm1(mixed) if self.config.sandwich_norms else mixed
        x = x + self._scaled(mixed, "lambda_1", "gate_attn")
        added = self.mlp(self.layer_norm2(x))
        added = self.post_norm2(added) if self.config.sandwich_norms else added
        return x + self._scaled(added, "lambda_2", "gate_ffn"), carry, out

    def _scaled(self, added: Array, scale: str, gate: str) -> Array:
        if self.config.layer_scale:
            added = added * getattr(self, scale)[...].astype(added.dtype)
        if self.config.tanh_gates:
            added = added * jnp.tanh(getattr(self, gate)[...].astype(added.dtype))
        return added


class _Projections(nnx.Module):
    """Queries, keys and values of attention, and the projection of its output."""

    def __init__(self, config: EncoderConfig, make: Maker):
        self.config = config
        width, heads = config.hidden_size, config.num_attention_heads
        wide = config.head_width * heads
        narrow = config.head_width * (config.num_key_value_heads or heads)
        self.q_proj, self.k_proj, self.v_proj = (
            make.linear(width, each, bias=config.attention_bias) for each in (wide, narrow, narrow)
        )
        self.out_proj = make.linear(wide, width, bias=config.attention_output_bias)
        if config.head_norms or config.query_key_head_norms:
            self.q_norm, self.k_norm = (
                encoder_norm(config, make, config.head_width) for _ in range(2)
            )
        if config.query_key_norm:
            self.q_norm, self.k_norm = (
                RmsNorm(width, epsilon=_QUERY_KEY_EPSILON, param_dtype=make.param_dtype)
                for _ in range(2)
            )

    def __call__(self, x: Array, rope: Rope | None) -> tuple[Array, Array, Array]:
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.config.query_key_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        heads = (*x.shape[:2], -1, self.config.head_width)
        query, key, value = (each.reshape(heads) for each in (query, key, value))
        if self.config.head_norms or self.config.query_key_head_norms:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.config.head_norms:
            value = rms_norm(value, self.config.layer_norm_eps).astype(value.dtype)
        if rope is not None:
            rotate = _rotate_halves if self.config.axis_halves else apply_rope
            query, key = rotate(query, *rope), rotate(key, *rope)
        return query, key, value


def _rotate_halves(x: Array, cos: Array, sin: Array) -> Array:
    """Each half of a head's channels rotated by itself: by the column, then by the row."""
    angles = (jnp.split(each, 2, axis=-1)[::-1] for each in (cos, sin))
    halves = zip(jnp.split(x, 2, axis=-1), *angles, strict=True)
    return jnp.concatenate([apply_rope(*half) for half in halves], axis=-1)
