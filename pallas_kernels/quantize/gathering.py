"""Visual tokens gathered for coding, and their moments, by one launch."""

import jax
import jax.numpy as jnp

from pallas_kernels.isa.program import Program, Run, run_on_gpu
from pallas_kernels.quantize.gather_kernel import CHUNK, WARPS, GatherKernel, GatherSpec
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.codes.dictionary_centring import LARGEST
from vkq_jax.pytree import frozen_pytree

__all__ = ["Gathered", "gather_tokens"]


@frozen_pytree
class Gathered:
    """Keys, then values, of the visual tokens.

    Attributes:
        x: bfloat16, 0 where there is no token and where one is not finite.
        mean, square: of each channel, mean and mean square of the distance to it, float32.
        spoilt: heads with an element that is not finite.
    """

    x: Float[Array, "2 heads V H"]
    mean: Float[Array, "2 heads H"]
    square: Float[Array, "2 heads H"]
    spoilt: Bool[Array, "2 heads"]


def gather_tokens(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    *,
    run: Run = run_on_gpu,
) -> Gathered:
    """The tokens at `index`, of which those that are not `valid` lie at the end."""
    batch, tokens, kv_heads, head_dim = key.shape
    positions = index.shape[1]
    spec = GatherSpec(batch, tokens, kv_heads, head_dim, positions, LARGEST)
    padding = (0, 0), (0, CHUNK * spec.chunks - positions)
    operands = {
        "key": key.reshape(-1, head_dim),
        "value": value.reshape(-1, head_dim),
        "position": jnp.pad(jnp.where(valid, index, -1), padding, constant_values=-1),
    }
    rows, parts = 2 * spec.heads, (2 * spec.heads, spec.chunks, head_dim)
    program = Program(
        body=lambda ops: GatherKernel(ops, spec).run(),
        results={
            "x": jax.ShapeDtypeStruct((rows * positions, head_dim), jnp.bfloat16),
            "sum": jax.ShapeDtypeStruct(parts, jnp.float32),
            "square": jax.ShapeDtypeStruct(parts, jnp.float32),
            "spoilt": jax.ShapeDtypeStruct((rows, spec.chunks, WARPS), jnp.uint32),
        },
        grid=spec.grid,
        warps=WARPS,
        shared_words=spec.shared_words,
    )
    x, total, square, spoilt = run(program, operands)
    x = x.reshape(2, -1, positions, head_dim)
    count = jnp.broadcast_to(valid.sum(-1, dtype=jnp.int32)[:, None], (batch, kv_heads))
    count = jnp.maximum(count, 1).astype(jnp.float32).reshape(1, -1, 1)
    mean, square = (part.reshape(2, -1, *part.shape[1:]).sum(2) / count for part in (total, square))
    away = mean - x[:, :, 0].astype(jnp.float32)
    return Gathered(
        x,
        mean,
        jnp.maximum(square - jnp.square(away), 0.0),
        spoilt.reshape(2, spec.heads, -1).any(-1),
    )
