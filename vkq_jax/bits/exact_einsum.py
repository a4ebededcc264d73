"""Products in full float32, on devices too whose default would round their operands."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array

__all__ = ["exact_einsum", "halves", "large_einsum", "on_gpu", "split_einsum"]

_FEW_ROWS = 1024  # up to which the operands' halves would take longer than they save


def on_gpu() -> bool:
    """Whether arrays that no device is named for, as `jax.default_device` does, lie on a GPU."""
    device = jax.config.jax_default_device  # pyright: ignore
    return (jax.default_backend() if device is None else device.platform) == "gpu"


def exact_einsum(spec: str, a: Array, b: Array) -> Array:
    """`jnp.einsum` of two float32 arrays without tf32 or bfloat16 in between."""
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def large_einsum(spec: str, a: Array, b: Array) -> Array:
    """`jnp.einsum` of two float32 arrays that are large enough for a tensor core.

    On a GPU it is three products of what tf32 holds of the operands and what it leaves, 22
    bits of mantissa together, and takes a fifth of the time of `exact_einsum`. Where `a` has more
    than 1,024 rows, they are products of what bfloat16 holds and leaves, 16 bits of mantissa
    together, which stand one after the other in one product of half the time.

    Args:
        spec: the last axis of both operands is summed over, the one before it in `a` is its rows.
        a, b: the operands.
    """
    if not on_gpu():
        return exact_einsum(spec, a, b)
    if a.shape[-2] <= _FEW_ROWS:
        return jnp.einsum(spec, a, b, precision=jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3)
    (upper_a, lower_a), (upper_b, lower_b) = halves(a), halves(b)
    left = jnp.concatenate([upper_a, upper_a, lower_a], axis=-1)
    right = jnp.concatenate([upper_b, lower_b, upper_b], axis=-1)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def split_einsum(spec: str, rows: Array, x: Array) -> Array:
    """`jnp.einsum` of float32 (or boolean) rows with anything, in float32.

    On a GPU the products with bfloat16, or with whole numbers up to 256, are the tensor core's: the
    rows are split into what bfloat16 holds of them and what it leaves, 16 bits of mantissa
    together. Rows are few, and twice as many cost no more; x is not copied to float32. Rows that
    are booleans need no second half.

    Args:
        spec: "...qXY,...Z->...qW": the same axes of both before q, as many after it in the result.
    """
    exact = x.dtype == jnp.bfloat16 or jnp.issubdtype(x.dtype, jnp.integer)
    if not exact or not on_gpu():
        return exact_einsum(spec, rows.astype(jnp.float32), x.astype(jnp.float32))
    x = x.astype(jnp.bfloat16)
    if rows.dtype == bool:
        rows = rows.astype(jnp.bfloat16)
        return jnp.einsum(spec, rows, x, preferred_element_type=jnp.float32)
    axis = rows.ndim + spec.index("q") - spec.index(",")
    both = jnp.concatenate(halves(rows), axis)
    found = jnp.einsum(spec, both, x, preferred_element_type=jnp.float32)
    first, second = jnp.split(found, 2, axis)
    return first + second


def halves(x: Array) -> tuple[Array, Array]:
    """Float32 numbers as a sum of two of bfloat16: the nearest, and what it leaves."""
    # Not by way of bfloat16 and back, which XLA leaves out on a GPU: nothing would remain.
    upper = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return upper.astype(jnp.bfloat16), (x - upper).astype(jnp.bfloat16)
