"""A mixture of experts: each token goes through the few MLPs that a router chooses for it."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from models.layers.activations import Activation, activate
from models.layers.linear import Maker
from models.layers.mlp import GatedMlp
from models.sharding.axes import MODEL
from models.sharding.placing import data_axis
from models.sharding.shards import on_shards
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["Experts", "MoeConfig", "MoeMlp", "best_experts"]

_LARGEST_BLOCK = 128  # tokens of one product, enough to be bound by arithmetic


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """A layer's experts, in Hugging Face's names.

    Attributes:
        num_experts: E.
        num_experts_per_tok: how many of them a token goes through.
        moe_intermediate_size: hidden channels of an expert.
        norm_topk_prob: the weights of a token's experts are made to sum to 1.
        scoring_func: of the router, see `MoeMlp`.
        n_group: groups of as many experts; topk_group: how many of them, those with the best two
            experts, a token chooses from.
        routed_scaling_factor: of the weights.
        shared_expert_intermediate_size: hidden channels of an MLP that all tokens go through; 0
            without.
        shared_expert_gate: its output is multiplied by the sigmoid of a number of each token
            (Qwen3.5).
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool = True
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    shared_expert_intermediate_size: int = 0
    shared_expert_gate: bool = False


class MoeMlp(nnx.Module):
    """sum over the k best e of p[e] * down[e](act(gate[e](x)) * up[e](x)), p = softmax(router(x)).

    Router as in Switch Transformers, arXiv 2101.03961, with k experts as in Mixtral, 2401.04088.
    With sigmoid as `scoring_func` p = sigmoid(router(x)), and a bias that files hold is added where
    experts are chosen: DeepSeek-V3, arXiv 2412.19437, section 2.1.2.
    """

    def __init__(self, make: Maker, hidden_size: int, config: MoeConfig, act: Activation):
        """Random parameters."""
        self.config = config
        self.gate = make.linear(hidden_size, config.num_experts, bias=False)
        self.experts = Experts(make, hidden_size, config, act)
        if config.scoring_func == "sigmoid":
            self.e_score_correction_bias = nnx.Param(jnp.zeros(config.num_experts, jnp.float32))
        if shared := config.shared_expert_intermediate_size:
            self.shared_experts = GatedMlp(make, hidden_size, shared, act, bias=False)
        if config.shared_expert_gate:
            self.shared_expert_gate = make.linear(hidden_size, 1, bias=False)

    def __call__(self, x: Float[Array, "B T width"]) -> Float[Array, "B T width"]:
        """The layer's output, in x's dtype."""
        tokens = x.reshape(-1, x.shape[-1])
        if self.config.scoring_func == "sigmoid":
            weight, expert = self._chosen_with_bias(tokens)
        else:
            weight, expert = best_experts(self.gate(tokens), self.config.num_experts_per_tok)
        if self.config.norm_topk_prob:
            # Sigmoids of all of a token's experts may be 0; transformers adds the same.
            weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
        weight = weight * self.config.routed_scaling_factor
        mixed = self.experts(tokens, expert, weight.astype(x.dtype)).reshape(x.shape)
        if not self.config.shared_expert_intermediate_size:
            return mixed
        shared = self.shared_experts(x)
        if self.config.shared_expert_gate:
            shared = shared * jax.nn.sigmoid(self.shared_expert_gate(x))
        return mixed + shared

    def _chosen_with_bias(
        self, tokens: Float[Array, "N width"]
    ) -> tuple[Float[Array, "N k"], Int32[Array, "N k"]]:
        """Shares of each token's experts, all in float32, and their numbers."""
        config, kernel = self.config, self.gate.kernel[...].astype(jnp.float32)
        shares = jax.nn.sigmoid(tokens.astype(jnp.float32) @ kernel)
        biased = shares + self.e_score_correction_bias[...].astype(jnp.float32)[None]
        groups = biased.reshape(len(tokens), config.n_group, -1)
        best = jax.lax.top_k(groups, 2)[0].sum(-1)
        _, taken = jax.lax.top_k(best, config.topk_group)
        open_to = jax.nn.one_hot(taken, config.n_group, dtype=bool).any(1)[..., None]
        biased = jnp.where(open_to, groups, -jnp.inf).reshape(biased.shape)
        _, expert = jax.lax.top_k(biased, config.num_experts_per_tok)
        return jnp.take_along_axis(shares, expert, axis=-1), expert


def best_experts(
    scores: Float[Array, "N E"], count: int
) -> tuple[Float[Array, "N k"], Int32[Array, "N k"]]:
    """Shares of each token's `count` best experts, float32, and their numbers."""
    share, expert = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), count)
    return share, expert


class Experts(nnx.Module):
    """Gated MLPs side by side: `gate_proj` and `up_proj` [E, in, out], `down_proj` [E, out, in]."""

    def __init__(self, make: Maker, hidden_size: int, config: MoeConfig, act: Activation):
        """Random parameters."""
        self.act, self.mesh = act, make.mesh
        inner, count = config.moe_intermediate_size, config.num_experts
        self.gate_proj = make.normal(count, hidden_size, inner)
        self.up_proj = make.normal(count, hidden_size, inner)
        self.down_proj = make.normal(count, inner, hidden_size)

    def __call__(
        self,
        tokens: Float[Array, "N width"],
        expert: Int32[Array, "N k"],
        weight: Float[Array, "N k"],
    ) -> Float[Array, "N width"]:
        """The weighted sum of the outputs of each token's k experts.

        Tokens are sorted by expert into blocks of one expert each, the last block of each expert
        filled up: the experts' matrices are read where they are needed and nowhere else. On a mesh
        each device runs the blocks of its own experts, for the tokens of its own sequences.
        """
        experts = [each[...] for each in (self.gate_proj, self.up_proj, self.down_proj)]
        of_tokens = PartitionSpec(self.mesh and data_axis(self.mesh, len(tokens)))
        specs = (PartitionSpec(MODEL), of_tokens, of_tokens, of_tokens)
        return on_shards(self.mesh, self._run, specs, of_tokens)(experts, tokens, expert, weight)

    def _run(
        self,
        experts: Sequence[Float[Array, "E ..."]],
        tokens: Float[Array, "N width"],
        expert: Int32[Array, "N k"],
        weight: Float[Array, "N k"],
    ) -> Float[Array, "N width"]:
        (own_count, *_), (rows, k) = experts[0].shape, expert.shape
        count = self.gate_proj.shape[0]
        chosen = expert.reshape(-1)
        # About as many tokens as an expert gets.
        per_expert = max(chosen.size // count, 1)
        block = min(1 << (per_expert - 1).bit_length(), _LARGEST_BLOCK)
        blocks = -(-chosen.size // block) + min(count, chosen.size)

        order = jnp.argsort(chosen)  # stable
        sizes = jnp.zeros(count, jnp.int32).at[chosen].add(1)
        ends = jnp.cumsum(-(-sizes // block))  # of each expert's blocks
        first_slot = (ends - -(-sizes // block)) * block
        first_sorted = jnp.cumsum(sizes) - sizes
        by_expert = chosen[order]
        rank = jnp.arange(chosen.size, dtype=jnp.int32) - first_sorted[by_expert]
        slot = jnp.zeros_like(chosen).at[order].set(first_slot[by_expert] + rank)
        # Slots that nothing fills read the first token; nothing reads their output.
        token = jnp.zeros(blocks * block, jnp.int32).at[slot].set(jnp.arange(chosen.size) // k)
        owner = jnp.searchsorted(ends, jnp.arange(blocks), side="right")
        owner = jnp.minimum(owner, count - 1)

        def run(item):
            own, x = item
            gate, up, down = (each[own].astype(x.dtype) for each in experts)
            return (activate(x @ gate, self.act) * (x @ up)) @ down

        def run_if_here(item):
            here = (item[0] >= 0) & (item[0] < own_count)
            return jax.lax.cond(here, run, lambda item: jnp.zeros_like(item[1]), item)

        if self.mesh is not None:
            owner = owner - jax.lax.axis_index(MODEL) * own_count
        items = owner, tokens[token].reshape(blocks, block, -1)
        out = jax.lax.map(run if self.mesh is None else run_if_here, items)
        out = out.reshape(blocks * block, -1)[slot].reshape(rows, k, -1)
        mixed = (out * weight[..., None]).sum(1)
        return mixed if self.mesh is None else jax.lax.psum(mixed, MODEL)
