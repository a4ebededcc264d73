"""Attention over one tiled visual bank by a fused kernel: operands, vmap, gradient, merge."""

import functools
import math

import jax
import jax.numpy as jnp

from pallas_kernels.launch import Launch
from pallas_kernels.layouts import BLOCK
from pallas_kernels.problem import Coding, Problem, Tiling
from pallas_kernels.tiled import TiledLevels, TiledSigns
from pallas_kernels.tilings import choose_tiling
from vkq_jax import post_scaling
from vkq_jax.array_types import Array, Float
from vkq_jax.attention import filled, masked_softmax
from vkq_jax.cache import VisualBank

__all__ = ["attend_visual"]

Result = tuple[Float[Array, "B K Q H"], Float[Array, "B K Q"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def attend_visual(
    query: Float[Array, "B K Q H"], bank: VisualBank, launch: Launch, tiling: Tiling | None
) -> Result:
    """Attention of all queries of a KV head over its bank, with the log-sum-exp.

    Args:
        query: float32, already times `logits_scale`.
        bank: tiled, see `pallas_kernels.tile`.
        launch: runs the kernel.
        tiling: how the work is cut; None chooses by shape.

    Returns:
        Output and natural log-sum-exp; -inf (and finite output) where the bank is empty. Mapped
        axes become part of the batch or, where the bank is not mapped, of the queries: one launch.
        The gradient is that of post-scaled attention in XLA.
    """

    @jax.custom_batching.custom_vmap
    def attend(query, bank):
        return _attend(query, bank, launch, tiling)

    @attend.def_vmap
    def fold(axis_size, in_batched, query, bank):
        query_batched, bank_batched = in_batched
        batch = query.shape[1] if query_batched else query.shape[0]
        if not any(jax.tree.leaves(bank_batched)):  # [Z, B, K, Q, H] -> [B, K, Z * Q, H]
            moved = jnp.moveaxis(query, 0, 2)
            output, logsumexp = attend(moved.reshape(*moved.shape[:2], -1, moved.shape[4]), bank)
            output = jnp.moveaxis(output.reshape(moved.shape), 2, 0)
            return (output, jnp.moveaxis(logsumexp.reshape(moved.shape[:4]), 2, 0)), (True, True)

        def into_batch(x, batched):  # [Z, B, ...] -> [Z * B, ...]
            x = x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            return x.reshape(axis_size * batch, *x.shape[2:])

        folded = jax.tree.map(into_batch, (query, bank), (query_batched, bank_batched))
        results = attend(*folded)
        unfolded = tuple(x.reshape(axis_size, batch, *x.shape[1:]) for x in results)
        return unfolded, (True, True)

    return attend(query, bank)


def _forward(query, bank, launch, tiling):
    return attend_visual(query, bank, launch, tiling), (query, bank)


def _backward(launch, tiling, residuals, cotangents):
    del launch, tiling
    query, bank = residuals
    _, pullback = jax.vjp(lambda query: _reference(query, bank), query)
    return (*pullback(cotangents), None)


attend_visual.defvjp(_forward, _backward)


def _reference(query: Float[Array, "B K Q H"], bank: VisualBank) -> Result:
    """The same in XLA, for the gradient."""
    scores = post_scaling.scores(query, bank.key)
    visible = filled(bank.length, scores.shape[-1])[:, None, None]
    weights, logsumexp = masked_softmax(scores, jnp.broadcast_to(visible, scores.shape))
    return post_scaling.weighted_sum(weights, bank.value), logsumexp


def _attend(query, bank: VisualBank, launch: Launch, tiling: Tiling | None) -> Result:
    key, value = bank.key, bank.value
    assert isinstance(key, TiledLevels | TiledSigns)
    assert isinstance(value, TiledLevels | TiledSigns)
    batch, kv_heads, queries, head_dim = query.shape
    blocks = key.packed.shape[-4]
    rows = batch * kv_heads * queries
    tiling = choose_tiling(rows, blocks) if tiling is None else tiling
    problem = Problem(
        batch=batch,
        kv_heads=kv_heads,
        queries=queries,
        blocks=blocks,
        head_dim=head_dim,
        key=_coding(key),
        value=_coding(value),
        tiling=tiling,
    )
    operands = {
        "query": (query * math.log2(math.e)).reshape(rows, head_dim),
        "length": bank.length,
        **_operands("key", key),
        **_operands("value", value),
    }
    output, logsumexp = launch(problem, operands)
    output = output.reshape(*query.shape[:3], tiling.splits, head_dim)
    logsumexp = logsumexp.reshape(*query.shape[:3], tiling.splits)
    if tiling.splits == 1:
        return output[..., 0, :], logsumexp[..., 0]
    weights, logsumexp = masked_softmax(logsumexp, jnp.isfinite(logsumexp))
    return jnp.sum(output * weights[..., None], -2), logsumexp


def _coding(x: TiledLevels | TiledSigns) -> Coding:
    if isinstance(x, TiledLevels):
        groups = x.lower.shape[-2]
        return Coding(groups=groups, group_blocks=x.group_size // BLOCK if groups > 1 else 0)
    return Coding(
        scale_bits=4 * x.token_scale.shape[-1],
        rotated=x.rotated,
        score_error_factor=x.score_error_factor,
    )


def _operands(name: str, x: TiledLevels | TiledSigns) -> dict[str, Array]:
    """The tensor's arrays by operand name, axes that the kernel does not tell apart joined."""
    arrays = {name: x.packed.reshape(-1, *x.packed.shape[-3:])}
    if isinstance(x, TiledLevels):
        tables = {"lower": x.lower, "upper": x.upper}
    else:
        arrays[f"{name}_scale"] = x.token_scale.reshape(-1, *x.token_scale.shape[-2:])
        tables = {"centre": x.centre}
    return arrays | {f"{name}_{key}": t.reshape(-1, t.shape[-1]) for key, t in tables.items()}
