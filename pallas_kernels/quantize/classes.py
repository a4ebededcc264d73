"""Dictionary codes of all classes of tokens by one launch, in the layout of attention's kernel."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.isa.program import Program, Run, run_on_gpu
from pallas_kernels.layout import layouts
from pallas_kernels.quantize.class_block import SIDES, BlocksSpec
from pallas_kernels.quantize.class_kernel import ClassesSpec, ClassKernel, ScaleRule
from pallas_kernels.quantize.half_block import WARPS
from vkq_jax.array_types import Array, Float, Int32, UInt32

__all__ = ["Coded", "code_classes", "coded_results", "results_of"]

Coded = tuple[
    tuple[UInt32[Array, "heads n"], ...], tuple[UInt32[Array, "heads blocks 32 2"] | None, ...]
]


def code_classes(
    x: Float[Array, "2 heads V H"],
    slot: Int32[Array, "heads S"],
    ids: Int32[Array, "2 heads V"],
    centre: Float[Array, "2 heads M H"],
    unit: Float[Array, "2 heads H"] | None = None,
    book: Float[Array, "2 K N H"] | None = None,
    *,
    capacities: Sequence[int],
    planes: Sequence[int],
    rules: tuple[ScaleRule, ScaleRule],
    run: Run = run_on_gpu,
) -> list[Coded]:
    """Words and scales of each class, of keys, then of values, see `TiledDictionary`.

    Args:
        x: tokens, bfloat16, finite. slot: the position in each slot, see `order_tokens`.
        ids: centroid of each token. centre: centroids of x / unit, finite.
        unit: of each channel. book: codebooks, bfloat16, whose centroids `ids` are and which are
            around the centre, if there is one; then there are no units.
        capacities, planes: of each class. rules: of scales.
        run: runs the kernel; tests emulate it.
    """
    _, heads, positions, head_dim = x.shape
    operands = {
        "x": x.reshape(-1, head_dim),
        "slot": slot,
        "ids": ids.reshape(-1, positions),
    }
    if centre.shape[2]:
        operands["centre"] = centre.astype(jnp.float32).reshape(-1, *centre.shape[2:])
    codebook, kv_heads = 0, 1
    if book is not None:
        kv_heads, codebook = book.shape[1:3]
        operands["book"] = book.reshape(-1, head_dim)
    elif unit is not None:
        operands["unit"] = (1.0 / unit.astype(jnp.float32)).reshape(-1, head_dim)
    spec = ClassesSpec(
        heads=heads,
        positions=positions,
        head_dim=head_dim,
        capacities=tuple(capacities),
        planes=tuple(planes),
        centres=centre.shape[2],
        rules=rules,
        codebook=codebook,
        kv_heads=kv_heads,
    )
    results = coded_results(spec)
    program = Program(
        body=lambda ops: ClassKernel(ops, spec).run(),
        results=results,
        grid=spec.grid,
        warps=WARPS,
        shared_words=spec.shared_words,
    )
    return results_of(spec, dict(zip(results, run(program, operands), strict=True)))


def coded_results(spec: BlocksSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the results of `ClassBlock`."""
    results: dict[str, jax.ShapeDtypeStruct] = {}
    for side in SIDES:
        for c in spec.coded:
            words = (spec.heads, spec.planes[c] * spec.words(c, side))
            scale = (spec.heads, layouts.num_blocks(spec.capacities[c]), 32, 2)
            results[f"words_{side}_{c}"] = jax.ShapeDtypeStruct(words, jnp.uint32)
            results[f"scale_{side}_{c}"] = jax.ShapeDtypeStruct(scale, jnp.uint32)
    return results


def results_of(spec: BlocksSpec, found: Mapping[str, Array]) -> list[Coded]:
    """Words and scales of each class, of keys, then of values, from what a launch has found."""
    nothing = jnp.zeros((spec.heads, 0), jnp.uint32)
    classes = range(len(spec.planes))
    return [
        (
            tuple(found.get(f"words_{side}_{c}", nothing) for c in classes),
            tuple(found.get(f"scale_{side}_{c}") for c in classes),
        )
        for side in SIDES
    ]
