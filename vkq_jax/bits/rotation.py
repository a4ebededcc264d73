"""The orthonormal Hadamard rotation of channels, which spreads a vector's energy evenly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Float
from vkq_jax.bits.exact_einsum import halves, on_gpu

__all__ = ["hadamard", "rotate", "rotate_tokens", "unrotate"]


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


def rotate_tokens(x: Float[Array, "*lead V H"]) -> Float[Array, "H *lead V"]:
    """R x of many tokens, float32, channels first: what is done to each token is then coalesced.

    On a GPU the product is a tensor core's, of what bfloat16 holds of x and what it leaves: 16 bits
    of mantissa. Up to the size of a block, R is of signs, which bfloat16 holds.
    """
    matrix, x = hadamard(x.shape[-1]), x.astype(jnp.float32)
    contracted = (((1,), (x.ndim - 1,)), ((), ()))
    if not on_gpu():
        exact = jax.lax.Precision.HIGHEST
        return jax.lax.dot_general(jnp.asarray(matrix), x, contracted, precision=exact)
    signs = jnp.asarray(np.sign(matrix), jnp.bfloat16)
    product = jax.lax.dot_general(
        jnp.concatenate([signs, signs], axis=-1),
        jnp.concatenate(halves(x), axis=-1),
        contracted,
        preferred_element_type=jnp.float32,
    )
    return product * np.abs(matrix).max(0).reshape(-1, *[1] * (x.ndim - 1))


def unrotate(x: Float[Array, "*lead H"]) -> Float[Array, "*lead H"]:
    """R^T x over the last axis, float32: the inverse of `rotate`."""
    return rotate(x)  # R is symmetric and orthonormal
