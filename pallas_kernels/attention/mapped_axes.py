"""Mapped axes around a launch, folded into it: one launch, no copy."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.attention.banks import Banks
from vkq_jax.array_types import Array

__all__ = ["fold_mapped_axes"]


def fold_mapped_axes(
    run: Callable[..., tuple[Array, ...]],
    rows,
    seen,
    banks: Banks,
    layer: Array,
    waves: Array | None = None,
    tables=None,
) -> tuple[Array, ...]:
    """`run(rows, seen, banks, layer, waves, tables)`, once whatever axes are mapped around it.

    Args:
        run: takes everything but the layer's number, waves and tables with an axis Z in front.
        rows: arrays [B, K, Q, ...] by name.
        seen: of each query position, [B, T] or [B, K, T]: "visible" and "start", by bank.
        banks, layer: see `fused_attention`. waves: see `BiasShare`.
        tables: of both sides that are multiplied by in launches.
    """

    @jax.custom_batching.custom_vmap
    def attend(rows, seen, banks, fixed):
        return run(rows, seen, banks, *fixed)

    @attend.def_vmap
    def fold(axis_size, in_batched, rows, seen, banks, fixed):
        rows_batched, seen_batched, banks_batched, (*fixed_batched, tables_batched) = in_batched
        if any(jax.tree.leaves(fixed_batched)):
            raise NotImplementedError("mosaic_gpu: a mapped layer number")
        if any(jax.tree.leaves(tables_batched)):  # of several models: one after the other

            def of_one(number):
                return attend(
                    *jax.tree.map(
                        lambda x, batched: x[number] if batched else x,
                        (rows, seen, banks, fixed),
                        tuple(in_batched),
                    )
                )

            results = jax.lax.map(of_one, jnp.arange(axis_size))
            return results, (True,) * len(results)

        def mapped(tree, batched):
            return jax.tree.map(
                lambda x, b: x if b else jnp.broadcast_to(x, (axis_size, *x.shape)), tree, batched
            )

        rows, seen = mapped((rows, seen), (rows_batched, seen_batched))
        if any(jax.tree.leaves(banks_batched)):

            def outward(tree):  # [Y, Z, ...] -> [Y * Z, ...]
                return jax.tree.map(
                    lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree
                )

            banks = mapped(banks, banks_batched)
            results = attend(*outward((rows, seen, banks)), fixed)
            unfolded = (x.reshape(axis_size, -1, *x.shape[1:]) for x in results)
        else:  # rows [Y, Z, B, K, Q, ...] -> [Z, B, K, Y * Q, ...], seen [..., T] alike
            flat = {name: _inward(x, 3) for name, x in rows.items()}
            seen = jax.tree.map(lambda x: _inward(x, x.ndim - 2), seen)
            unfolded = (
                jnp.moveaxis(x.reshape(*x.shape[:3], axis_size, -1, *x.shape[4:]), 3, 0)
                for x in attend(flat, seen, banks, fixed)
            )
        results = tuple(unfolded)
        return results, (True,) * len(results)

    one = jax.tree.map(lambda x: x[None], (rows, seen, banks))
    return tuple(x[0] for x in attend(*one, (layer, waves, tables)))


def _inward(x: Array, axis: int) -> Array:
    """Joins the first axis with the one behind `axis`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
