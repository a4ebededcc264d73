"""Decoder layers with linear attention instead of attention (Qwen3.5).

Queries, keys and values go through short convolutions and the gated delta rule
(`models.text.delta_rule`), which keeps a matrix S for each value head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from models.layers.activations import activate
from models.layers.linear import Maker
from models.layers.norms import RmsNorm
from models.sharding.axes import MODEL
from models.sharding.placing import data_axis, model_parts, place_sequences
from models.sharding.shards import on_shards
from models.text.block import decoder_mlp, decoder_norm
from models.text.config import LinearAttentionConfig, TextConfig
from models.text.delta_rule import gated_delta_rule
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.recurrent import RecurrentState
from vkq_jax.cache.visual import left_pack
from vkq_jax.pytree import take_layer

__all__ = ["LinearBlock", "Recurrence", "empty_states", "without_past"]


type State = tuple[Array, Array, Array, Array]
"""The last inputs of the convolutions of queries, keys and values [B, heads, kernel - 1, channels],
and S [B, heads, key, value]."""


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """Where layers of linear attention find their state and leave it.

    Attributes:
        valid: tokens that count; the others, padding anywhere, leave the state as it is.
        read: `(layer, carry) -> state`.
        write: `(layer, state, carry) -> carry`.
    """

    valid: Bool[Array, "B T"]
    read: Callable[[Any, Any], State]
    write: Callable[[Any, State, Any], Any]


def empty_states(config: LinearAttentionConfig, batch: int, dtype: DTypeLike) -> RecurrentState:
    """The states of all layers before the first token."""
    lead = len(config.layers), batch
    matrix = config.num_value_heads, config.key_head_dim, config.value_head_dim
    inputs = (
        jnp.zeros((*lead, heads, config.kernel - 1, channels), dtype)
        for heads, channels in config.heads
    )
    return RecurrentState((*inputs, jnp.zeros((*lead, *matrix), jnp.float32)), config.layers)


def without_past(
    config: TextConfig, valid: Bool[Array, "B T"], dtype: DTypeLike
) -> Recurrence | None:
    """The states of whole prompts without a cache; None where the decoder has no such layers."""
    if config.linear is None:
        return None
    query, key, value, matrix = take_layer(
        empty_states(config.linear, valid.shape[0], dtype).values, 0
    )
    empty = query, key, value, matrix
    return Recurrence(valid, lambda layer, carry: empty, lambda layer, state, carry: carry)


class LinearBlock(nnx.Module):
    """Linear attention, then a gated MLP, each added to the residual stream."""

    def __init__(self, config: TextConfig, make: Maker):
        """Random parameters."""
        self.mesh = make.mesh
        self.input_layernorm = decoder_norm(config, make)
        self.linear_attn = _GatedDeltaNet(config, make)
        self.post_attention_layernorm = decoder_norm(config, make)
        self.mlp = decoder_mlp(config, make)

    def __call__(
        self,
        x: Float[Array, "B T hidden_size"],
        recurrence: Recurrence,
        layer: Int32[Array, ""] | int,
        carry: Any,
    ) -> tuple[Float[Array, "B T hidden_size"], Any]:
        """The next residual stream and carry."""
        before = recurrence.read(layer, carry)
        mixed, after = self.linear_attn(self.input_layernorm(x), recurrence.valid, before)
        x = x + place_sequences(self.mesh, mixed)
        carry = recurrence.write(layer, after, carry)
        added = place_sequences(self.mesh, self.mlp(self.post_attention_layernorm(x)))
        return x + added, carry


class _Convolution(nnx.Module):
    """A causal convolution over tokens, each channel by itself, without a bias."""

    def __init__(self, channels: int, kernel: int, make: Maker):
        self.weight = make.normal(channels, 1, kernel)


def _convolve(
    window: Float[Array, "B heads S C"], weight: Float[Array, "heads*C 1 kernel"]
) -> Float[Array, "B T heads C"]:
    """The T = S - kernel + 1 outputs that see whole kernels of the S inputs."""
    kernel = weight.shape[-1]
    weight = weight.astype(window.dtype).reshape(window.shape[1], 1, -1, kernel)
    tokens = window.shape[2] - kernel + 1
    taps = [window[:, :, i : i + tokens] * weight[None, ..., i] for i in range(kernel)]
    return sum(taps[1:], taps[0]).swapaxes(1, 2)


class _GatedDeltaNet(nnx.Module):
    """Parts have the names of Hugging Face's files, convolutions of queries, keys and values apart.

    On a mesh each device has the heads of its own, from the projections to the state. Devices that
    share the heads have the projections apart, too. A device that has all heads has them as one
    product: a decode step of few sequences runs it in little more than half of the time of three.
    """

    def __init__(self, config: TextConfig, make: Maker):
        assert config.linear is not None
        self.config, self.act, self.mesh = config.linear, config.hidden_act, make.mesh
        width, values = config.hidden_size, self.config.num_value_heads
        value_width = values * self.config.value_head_dim
        for name, channels in zip("qkv", self.config.widths, strict=True):
            setattr(self, f"conv1d_{name}", _Convolution(channels, self.config.kernel, make))
            if self._apart:
                setattr(self, f"in_proj_{name}", make.linear(width, channels, bias=False))
        if not self._apart:
            self.in_proj_qkv = make.linear(width, sum(self.config.widths), bias=False)
        self.in_proj_z = make.linear(width, value_width, bias=False)
        self.in_proj_b = make.linear(width, values, bias=False)
        self.in_proj_a = make.linear(width, values, bias=False)
        self.dt_bias = nnx.Param(jnp.ones(values, make.param_dtype))
        self.A_log = nnx.Param(jnp.zeros(values, make.param_dtype))
        self.norm = RmsNorm(
            self.config.value_head_dim, epsilon=config.rms_norm_eps, param_dtype=make.param_dtype
        )
        self.out_proj = make.linear(value_width, width, bias=False)

    def __call__(
        self, x: Float[Array, "B T width"], valid: Bool[Array, "B T"], state: State
    ) -> tuple[Float[Array, "B T width"], State]:
        # Tokens that count stand together, right after those of the state.
        index, taken = left_pack(valid, valid.shape[1])
        x = jnp.take_along_axis(x, index[..., None], axis=1)
        step = jax.nn.softplus(
            self.in_proj_a(x).astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32)
        )
        decay = -jnp.exp(self.A_log[...].astype(jnp.float32)) * step
        rate = jax.nn.sigmoid(self.in_proj_b(x)).astype(jnp.float32)
        decay, rate = (jnp.where(taken[..., None], each, 0.0) for each in (decay, rate))
        projected = self._project(x)
        weights = [getattr(self, f"conv1d_{name}").weight[...] for name in "qkv"]
        output, state = self._on_own_heads(projected, weights, decay, rate, valid, state)
        gate = self.in_proj_z(x).reshape(output.shape).astype(jnp.float32)
        normed = self.norm(output.astype(x.dtype)).astype(jnp.float32) * jax.nn.silu(gate)
        output = self.out_proj(normed.astype(x.dtype).reshape(*x.shape[:2], -1))
        rank = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
        output = jnp.take_along_axis(output, rank[..., None], axis=1)
        return jnp.where(valid[..., None], output, jnp.zeros_like(output)), state

    @property
    def _apart(self) -> bool:
        """Whether queries, keys and values have a projection each."""
        return model_parts(self.mesh) > 1

    def _project(self, x: Float[Array, "B T width"]) -> list[Float[Array, "B T _"]]:
        """Queries, keys and values."""
        if self._apart:
            return [getattr(self, f"in_proj_{name}")(x) for name in "qkv"]
        (_, first), (_, second), _ = self.config.ranges.values()
        return jnp.split(self.in_proj_qkv(x), (first, second), axis=-1)

    def _on_own_heads(
        self,
        projected: list[Float[Array, "B T _"]],
        weights: list[Float[Array, "_ 1 kernel"]],
        decay: Float[Array, "B T v"],
        rate: Float[Array, "B T v"],
        valid: Bool[Array, "B T"],
        state: State,
    ) -> tuple[Float[Array, "B T v V"], State]:
        """Convolutions and the delta rule, by each device for its own sequences and heads."""
        rows = self.mesh and data_axis(self.mesh, len(valid))
        by_head = PartitionSpec(rows, None, MODEL)
        of_state = PartitionSpec(rows, MODEL)
        return on_shards(
            self.mesh,
            self._mix,
            (by_head, PartitionSpec(MODEL), by_head, by_head, PartitionSpec(rows), of_state),
            (by_head, of_state),
        )(projected, weights, decay, rate, valid, state)

    def _mix(
        self,
        projected: list[Array],
        weights: list[Array],
        decay: Array,
        rate: Array,
        valid: Array,
        state: State,
    ) -> tuple[Array, State]:
        *past, memory = state
        count = valid.sum(-1, dtype=jnp.int32)
        last = count[:, None] + jnp.arange(self.config.kernel - 1, dtype=jnp.int32)
        mixed, inputs = [], []
        for x, before, weight in zip(projected, past, weights, strict=True):
            own = x.reshape(*x.shape[:2], before.shape[1], -1).swapaxes(1, 2)
            window = jnp.concatenate([before.astype(x.dtype), own], axis=2)
            inputs.append(jnp.take_along_axis(window, last[:, None, :, None], axis=2))
            mixed.append(activate(_convolve(window, weight), self.act))
        query, key, value = mixed
        output, memory = gated_delta_rule(query, key, value, decay, rate, memory)
        query_inputs, key_inputs, value_inputs = inputs
        return output, (query_inputs, key_inputs, value_inputs, memory)
