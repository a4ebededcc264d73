"""Steps of k-means over the tokens of each head, a launch each."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.isa.program import Program, Run, run_on_gpu
from pallas_kernels.quantize.lloyd_kernel import WARPS, LloydKernel, LloydSpec
from vkq_jax.array_types import Array, Bool, Float, Int32

__all__ = ["assign_tokens"]


def assign_tokens(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    centres: Float[Array, "*lead M H"],
    unit: Float[Array, "*lead H"],
    steps: int,
    *,
    run: Run = run_on_gpu,
) -> tuple[Float[Array, "*lead M H"], Int32[Array, "*lead V"], Float[Array, "*lead V"]]:
    """Centres after so many steps of Lloyd's algorithm, and what tokens are to them.

    Args:
        x: tokens, bfloat16, finite. valid: which ones there are: none behind one that is not.
        centres: to begin with, of x / unit, float32. unit: of each channel.
        steps: how many. run: runs the kernel; tests emulate it.

    Returns:
        Centres, float32 numbers that bfloat16 has: one without tokens stays where it is. The
        nearest centre of each token, and how far it is away, squared; 0 where there is no token.
    """
    *lead, positions, head_dim = x.shape
    count, heads = centres.shape[-2], math.prod(lead)
    centres = centres.reshape(heads, count, head_dim)
    spec = LloydSpec(heads, positions, head_dim, count)
    found = jnp.zeros((heads, spec.chunks, count, head_dim), jnp.float32)
    size = jnp.zeros((heads, spec.chunks, count), jnp.float32)
    operands = {
        "x": x.reshape(-1, head_dim),
        "length": valid.sum(-1, dtype=jnp.int32).reshape(-1),
        "unit": 1.0 / unit.astype(jnp.float32).reshape(-1, head_dim),
    }

    def launch(spec: LloydSpec, results: dict[str, jax.ShapeDtypeStruct], operands):
        program = Program(
            body=lambda ops: LloydKernel(ops, spec).run(),
            results={"centre": jax.ShapeDtypeStruct(centres.shape, jnp.float32), **results},
            grid=heads * spec.chunks,
            warps=WARPS,
            shared_words=spec.shared_words,
        )
        return run(program, operands)

    sums = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in (("found", found), ("size", size))
    }

    # Traced and lowered once: jax 0.11 would compile the kernel of each launch anew.
    @jax.jit
    def step(operands):
        return launch(spec, sums, operands)

    for _ in range(steps):
        state = {"old": centres, "sum": found, "count": size}
        centres, found, size = step(operands | state)
    state = {"old": centres, "sum": found, "count": size}
    tokens = jax.ShapeDtypeStruct((heads * positions,), jnp.int32)
    energies = jax.ShapeDtypeStruct((heads * positions,), jnp.float32)
    centres, ids, energy = launch(
        dataclasses.replace(spec, last=True),
        {"ids": tokens, "energy": energies},
        operands | state,
    )
    of_tokens = (*lead, positions)
    return (
        centres.reshape(*lead, count, head_dim),
        ids.reshape(of_tokens),
        energy.reshape(of_tokens),
    )
