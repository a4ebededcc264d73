"""Dictionary codes of learned dictionaries, of all classes of tokens by one launch."""

from collections.abc import Sequence

import jax.numpy as jnp

from pallas_kernels.isa.program import Program, Run, run_on_gpu
from pallas_kernels.layout import layouts
from pallas_kernels.quantize.classes import Coded, coded_results, results_of
from pallas_kernels.quantize.half_block import WARPS
from pallas_kernels.quantize.learned_kernel import (
    CODE_STRIDE,
    LearnedKernel,
    LearnedRule,
    LearnedSpec,
)
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.codes.code_tables import ClassTables

__all__ = ["code_learned"]


def code_learned(
    x: Float[Array, "2 heads V H"],
    slot: Int32[Array, "heads S"],
    ids: Int32[Array, "2 heads V"],
    centre: Float[Array, "2 heads M H"],
    book: Float[Array, "2 K N H"],
    tables: Sequence[tuple[ClassTables, ClassTables] | None],
    *,
    capacities: Sequence[int],
    stored: Sequence[int],
    rules: tuple[LearnedRule, LearnedRule],
    run: Run = run_on_gpu,
) -> list[Coded]:
    """Words and scales of each class, of keys, then of values, see `TiledDictionary`.

    Args:
        x: tokens, bfloat16, finite. slot: the position in each slot, see `order_tokens`.
        ids: centroid of each token in `book`, codebooks in bfloat16. centre: that centroids are
            around, one or none.
        tables: of each class, of keys and of values; None: the class has no bits.
        capacities, stored: slots of each class, and bits of a token. rules: of scales.
        run: runs the kernel; tests emulate it.
    """
    _, heads, positions, head_dim = x.shape
    kv_heads, codebook = book.shape[1:3]
    dims = [min(n, layouts.HEAD_DIMS[-1]) for n in stored]
    spec = LearnedSpec(
        heads=heads,
        positions=positions,
        head_dim=head_dim,
        capacities=tuple(capacities),
        planes=tuple(n and n // dim for n, dim in zip(stored, dims, strict=True)),
        stored=tuple(stored),
        rules=rules,
        codebook=codebook,
        kv_heads=kv_heads,
        centred=bool(centre.shape[2]),
    )
    operands = {
        "x": x.reshape(-1, head_dim),
        "slot": slot,
        "ids": ids.reshape(-1, positions),
        "book": book.reshape(-1, head_dim),
        **_of_tables([side for pair in tables if pair is not None for side in pair], spec),
    }
    if spec.centred:
        operands["centre"] = centre.astype(jnp.float32).reshape(-1, head_dim)
    results = coded_results(spec)
    program = Program(
        body=lambda ops: LearnedKernel(ops, spec).run(),
        results=results,
        grid=spec.grid,
        warps=WARPS,
        shared_words=spec.shared_words,
    )
    return results_of(spec, dict(zip(results, run(program, operands), strict=True)))


def _of_tables(tables: Sequence[ClassTables], spec: LearnedSpec) -> dict[str, Array]:
    """Operands of `LearnedKernel`, of classes with bits, each of keys and of values."""

    def joined(parts: Sequence[Array]) -> Array:  # each [K, ...]
        return jnp.concatenate(parts, axis=0)

    def padded(x: Array, fill: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, spec.entries - x.shape[1])), constant_values=fill)

    places = joined([padded(t.channel, spec.head_dim) for t in tables]) * CODE_STRIDE
    turns = 31 - joined([padded(t.shift, 0) for t in tables])
    return {
        "analysis": joined([t.analysis for t in tables]).reshape(-1, spec.head_dim),
        "step": joined([t.step for t in tables]),
        "top": joined([t.top for t in tables]).astype(jnp.float32),
        "entry": jnp.stack([places, turns], axis=-1),
        "weight": joined([padded(t.weight, 0) for t in tables]),
    }
