"""Tokens assigned to the centroids of a model's codebook, one launch."""

import jax
import jax.numpy as jnp

from pallas_kernels.isa.program import Program, Run, run_on_gpu
from pallas_kernels.quantize.nearest_kernel import WARPS, NearestKernel, NearestSpec
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.bits.exact_einsum import exact_einsum, halves

__all__ = ["nearest_centroids"]


def nearest_centroids(
    x: Float[Array, "sides heads V H"],
    valid: Bool[Array, "B V"],
    centre: Float[Array, "sides heads M H"],
    book: Float[Array, "sides K N H"],
    metric: Float[Array, "sides K H H"] | None = None,
    *,
    run: Run = run_on_gpu,
) -> tuple[Int32[Array, "sides heads V"], Float[Array, "sides heads V"]]:
    """The centroid nearest to each token less its centre, and |A (x - centre - centroid)|^2.

    Args:
        x: tokens of B sequences and K heads, bfloat16, finite. valid: which ones there are: none
            behind one that is not.
        centre: as stored, finite, of each head: one or none.
        book: codebooks of keys or of values, or of both, bfloat16. metric: A; None: the identity.
        run: runs the kernel; tests emulate it.

    Returns:
        Numbers of centroids, and energies: 0 where there is no token.
    """
    sides, heads, positions, head_dim = x.shape
    batch, (kv_heads, count) = len(valid), book.shape[1:3]
    centred = bool(centre.shape[2])
    spec = NearestSpec(
        sides, batch, kv_heads, positions, head_dim, count, centred, metric is not None
    )
    rows = book.astype(jnp.float32)
    mean = centre.astype(jnp.float32).reshape(sides, batch, kv_heads, -1, head_dim)
    operands = {"x": x.reshape(-1, head_dim), "length": valid.sum(-1, dtype=jnp.int32)}
    if metric is None:
        # |row|^2 + 2 mean . row, one sum: XLA makes one kernel of it.
        bias = (rows[:, None] * (rows[:, None] + 2.0 * mean if centred else rows[:, None])).sum(-1)
        operands["book"] = (-2.0 * rows).astype(jnp.bfloat16)
        operands |= {"centre": mean} if centred else {}
    else:
        root = metric.astype(jnp.float32)
        measured = exact_einsum("sknh,skgh->skng", rows, root)
        bias = jnp.square(measured).sum(-1)[:, None]
        rows = exact_einsum("skng,skgh->sknh", measured, root)
        operands["book"] = jnp.concatenate(halves(-2.0 * rows), axis=2)
        operands["root"] = jnp.concatenate(halves(root), axis=2)
        if centred:
            operands["away"] = -exact_einsum("sbkmh,skgh->sbkmg", mean, root)
            bias = bias + 2.0 * exact_einsum("sbkmh,sknh->sbkn", mean, rows)
    bias = jnp.broadcast_to(bias, (sides, batch, kv_heads, count))
    for name in ("book", "root", "centre", "away"):
        if name in operands:
            operands[name] = operands[name].reshape(-1, head_dim)
    program = Program(
        body=lambda ops: NearestKernel(ops, spec).run(),
        results={
            "ids": jax.ShapeDtypeStruct((sides * heads * positions,), jnp.int32),
            "energy": jax.ShapeDtypeStruct((sides * heads * positions,), jnp.float32),
        },
        grid=spec.grid,
        warps=WARPS,
        shared_words=spec.shared_words,
    )
    ids, energy = run(program, operands | {"bias": bias.reshape(-1, count)})
    return ids.reshape(x.shape[:3]), energy.reshape(x.shape[:3])
