"""The LLaMA text tower, with attention left to its caller."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.families.llava.config import TextConfig
from models.layers.layer_scan import scan_layers, stack_layers
from models.layers.norms import RmsNorm, activate
from models.layers.rope import apply_rope, rope
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["Attend", "LlamaTower"]

type Attend = Callable[[Array, Array, Array, Array, Any], tuple[Array, Any, Any]]
"""`attend(layer, query, key, value, carry) -> (output, carry, out)`.

Takes the layer's number (int32 scalar), query [B, T, N, H], key and value [B, T, K, H] and what the
previous layer handed on; returns [B, T, N, H], what the next layer gets, and any pytree, which the
tower stacks over layers. Queries and keys carry RoPE; scores are not scaled yet.
"""


class LlamaTower(nnx.Module):
    """Token embedding, a stack of decoder blocks, the final norm and the output head.

    Masks and caches are unknown here: they live in the `attend` callback and its carry.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
    ):
        """Random parameters of `param_dtype` (default: `dtype`); computes in `dtype`."""
        param_dtype = dtype if param_dtype is None else param_dtype
        self.config, self.dtype = config, jnp.dtype(dtype)
        normal = nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(
            normal(rngs.params(), (config.vocab_size, config.width), param_dtype)
        )
        self.layers = stack_layers(
            lambda rngs: _Block(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype),
            config.num_layers,
            rngs,
        )
        self.norm = RmsNorm(config.width, epsilon=config.norm_epsilon, param_dtype=param_dtype)
        if not config.tied_head:
            self.head = nnx.Param(
                normal(rngs.params(), (config.width, config.vocab_size), param_dtype)
            )

    def embed(self, input_ids: Int32[Array, "B T"]) -> Float[Array, "B T width"]:
        """Token embeddings in the compute dtype; an id outside the vocabulary gets the nearest."""
        # Checkpoints exist whose image token is no row of the embedding; that row is replaced.
        return jnp.take(self.embedding[...], input_ids, axis=0, mode="clip").astype(self.dtype)

    def __call__(
        self,
        x: Float[Array, "B T width"],
        positions: Int32[Array, "B T"],
        attend: Attend,
        carry: Any = None,
        *,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T width"], Any, Any]:
        """Runs all blocks and the final norm.

        Args:
            x: embeddings in the compute dtype.
            positions: what RoPE turns queries and keys by.
            attend: see `Attend`.
            carry: what the first block's `attend` gets.
            remat: recompute activations in the backward pass instead of keeping them.

        Returns:
            The normed x, the last carry, and `attend`'s outputs with a leading axis L.
        """
        cos, sin = rope(positions, self.config.rope, x.dtype)

        def step(block, layer, carry):
            x, inner = carry
            x, inner, out = block(x, cos, sin, layer, attend, inner)
            return (x, inner), out

        (x, carry), outputs = scan_layers(
            self.layers, step, (x, carry), self.config.num_layers, remat=remat
        )
        return self.norm(x), carry, outputs

    def logits(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead vocab"]:
        """Scores of the next token for normed `x`, accumulated in float32."""
        head = self.embedding[...].T if self.config.tied_head else self.head[...]
        return jnp.matmul(x, head.astype(x.dtype), preferred_element_type=jnp.float32)


class _Block(nnx.Module):
    """Attention, then a gated MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: TextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, param_dtype: DTypeLike
    ):
        def linear(inputs: int, outputs: int, use_bias: bool) -> nnx.Linear:
            return nnx.Linear(
                inputs, outputs, use_bias=use_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        def norm() -> RmsNorm:
            return RmsNorm(config.width, epsilon=config.norm_epsilon, param_dtype=param_dtype)

        self.config = config
        query_width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.query = linear(config.width, query_width, config.attention_bias)
        self.key = linear(config.width, kv_width, config.attention_bias)
        self.value = linear(config.width, kv_width, config.attention_bias)
        self.output = linear(query_width, config.width, config.attention_bias)
        self.gate = linear(config.width, config.mlp_width, config.mlp_bias)
        self.expand = linear(config.width, config.mlp_width, config.mlp_bias)
        self.contract = linear(config.mlp_width, config.width, config.mlp_bias)

    def __call__(
        self, x: Array, cos: Array, sin: Array, layer: Array, attend: Attend, carry: Any
    ) -> tuple[Array, Any, Any]:
        heads = (*x.shape[:2], -1, self.config.head_dim)
        normed = self.attention_norm(x)
        query = apply_rope(self.query(normed).reshape(heads), cos, sin)
        key = apply_rope(self.key(normed).reshape(heads), cos, sin)
        value = self.value(normed).reshape(heads)
        mixed, carry, out = attend(layer, query, key, value, carry)
        x = x + self.output(mixed.reshape(*x.shape[:2], -1).astype(x.dtype))
        normed = self.mlp_norm(x)
        gate = activate(self.gate(normed), self.config.activation)
        return x + self.contract(gate * self.expand(normed)), carry, out
