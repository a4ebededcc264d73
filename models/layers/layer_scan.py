"""Stacks of equal blocks: made, run one after another, their parameters together or apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vkq_jax.array_types import Array
from vkq_jax.pytree import frozen_pytree

__all__ = ["UnstackedParam", "restack_layers", "scan_layers", "stack_layers", "unstack_layers"]


def stack_layers[M: nnx.Module](
    create: Callable[[nnx.Rngs], M], num_layers: int, rngs: nnx.Rngs
) -> M:
    """One module that holds `num_layers` equal blocks: each parameter has a leading axis L."""
    return nnx.split_rngs(splits=num_layers)(nnx.vmap(create))(rngs)


@frozen_pytree
class UnstackedParam:
    """A parameter of stacked blocks whose layers lie in buffers of their own.

    A loop over a stack hands each layer a copy of its slice, because a matrix product wants its
    operand in one piece. In a decode step, which does little but read the weights, that triples
    what is read and written. Blocks with such parameters are run one by one instead of in a loop.
    """

    layers: tuple[Array, ...]


def unstack_layers(stack: Array) -> UnstackedParam:
    """A stacked parameter with each layer in a buffer of its own; frees the stack."""
    layers = tuple(jax.block_until_ready([stack[i] for i in range(stack.shape[0])]))
    stack.delete()
    return UnstackedParam(layers)


def restack_layers(params: Any) -> Any:
    """The stacked parameters again."""
    return jax.tree.map(
        lambda x: jnp.stack(x.layers) if _is_unstacked(x) else x, params, is_leaf=_is_unstacked
    )


def scan_layers[C](
    layers: nnx.Module,
    step: Callable[[Any, Any, C], tuple[C, Any]],
    carry: C,
    num_layers: int,
    *,
    remat: bool = False,
    unroll: bool = False,
) -> tuple[C, Any]:
    """Runs stacked blocks one after another, compiled once whatever their number.

    Blocks whose parameters are `UnstackedParam`s are compiled one by one.

    Args:
        layers: what `stack_layers` made.
        step: `(block, layer, carry) -> (carry, output)`; the layer's number is an int32 scalar,
            or a plain integer where blocks are compiled one by one.
        carry: what goes from block to block.
        num_layers: L.
        remat: recompute a block's activations in the backward pass instead of keeping them.
        unroll: compile block by block: the backward pass need not stack the activations that it
            keeps, which is faster to run and slower to compile.

    Returns:
        The last carry, and the outputs stacked along a leading axis L.
    """
    graphdef, params = nnx.split(layers)

    def body(carry: C, item: tuple[Array | int, Any]) -> tuple[C, Any]:
        layer, block_params = item
        return step(nnx.merge(graphdef, block_params), layer, carry)

    if remat:
        # Inside a scan nothing can be merged across iterations, so the barrier only costs time.
        body = jax.checkpoint(body, prevent_cse=False)
    numbers = jnp.arange(num_layers, dtype=jnp.int32)
    apart = any(map(_is_unstacked, jax.tree.leaves(params, is_leaf=_is_unstacked)))
    if not apart and not unroll:
        return jax.lax.scan(body, carry, (numbers, params))

    outputs = None
    for i in range(num_layers):
        block_params = jax.tree.map(
            lambda x, i=i: x.layers[i] if _is_unstacked(x) else x[i], params, is_leaf=_is_unstacked
        )
        carry, output = body(carry, (i, block_params))
        if outputs is None:  # written layer by layer: no second copy of all of them
            outputs = jax.tree.map(lambda x: jnp.zeros((num_layers, *x.shape), x.dtype), output)
        outputs = jax.tree.map(lambda all, x, i=i: all.at[i].set(x), outputs, output)
    return carry, outputs


def _is_unstacked(x: Any) -> bool:
    return isinstance(x, UnstackedParam)
