"""The orthonormal Hadamard rotation of channels, which spreads a vector's energy evenly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Float

__all__ = ["hadamard", "rotate", "unrotate"]


@functools.cache
def hadamard(size: int) -> np.ndarray:
    """Orthonormal matrix [size, size] of Hadamard type, float32.

    Block diagonal of Sylvester matrices, the size's binary digits giving the blocks: 128 is one
    block, 80 is 64 + 16. Each block is symmetric, so the matrix is its own inverse.
    """
    matrix = np.zeros((size, size), np.float32)
    start = 0
    for power in reversed(range(size.bit_length())):
        if size >> power & 1:
            block = np.ones((1, 1), np.float32)
            for _ in range(power):
                block = np.block([[block, block], [block, -block]])
            stop = start + block.shape[0]
            matrix[start:stop, start:stop] = block / np.sqrt(np.float32(block.shape[0]))
            start = stop
    return matrix


def rotate(x: Float[Array, "*lead H"]) -> Float[Array, "*lead H"]:
    """R x over the last axis, float32."""
    matrix = jnp.asarray(hadamard(x.shape[-1]))
    return jnp.matmul(x.astype(jnp.float32), matrix, precision=jax.lax.Precision.HIGHEST)


def unrotate(x: Float[Array, "*lead H"]) -> Float[Array, "*lead H"]:
    """R^T x over the last axis, float32: the inverse of `rotate`."""
    return rotate(x)  # R is symmetric and orthonormal
