"""Bits that each visual token takes in the cache, and the error that coding leaves in it."""

import math

import jax.numpy as jnp

from vkq_jax.array_types import Array, Float
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.pytree import nbytes

__all__ = ["bits_of_tokens", "error_of_tokens"]


def bits_of_tokens(bank: VisualBank, shape: tuple[int, ...]) -> Float[Array, "L V"]:
    """Bits per element of each token, mean over heads, keys and values.

    Tokens differ where codes have classes of tokens. Bits that tokens share (levels, centres) are
    divided equally among them, so that the mean is that of all the bank's bytes.

    Args:
        bank: without padding.
        shape: [L, K, V, H] of its keys.
    """
    layers, heads, tokens, head_dim = shape
    tensors = [tensor.plain() for tensor in (bank.key, bank.value)]
    own = sum((_own_bits(tensor, bank) for tensor in tensors), jnp.zeros(shape[:-1]))
    total = 8 * nbytes((tensors, bank.class_map)) / layers
    shared = (total - own.sum((1, 2))) / (heads * tokens)
    return (own.mean(1) + shared[:, None]) / (2 * head_dim)


def error_of_tokens(
    x: Float[Array, "L K V H"], x_hat: Float[Array, "L K V H"]
) -> Float[Array, "L V"]:
    """|x_hat - x|^2 / |x|^2 of each token over all its heads and channels, float32."""
    x = x.astype(jnp.float32)
    size = jnp.square(x).sum((1, 3))
    return jnp.square(x_hat - x).sum((1, 3)) / jnp.where(size == 0, 1, size)


def _own_bits(tensor: QuantizedTensor, bank: VisualBank) -> Array:
    """Bits that are stored for one token of each head alone, [L, K, V] or one number for all."""
    if not isinstance(tensor, DictionaryTensor):
        return jnp.zeros(())
    assert bank.class_map is not None
    of_class = [
        8 * (nbytes((words, scale)) / math.prod(words.shape[:-1]) if words.shape[-2] else 0)
        for words, scale in zip(tensor.packed, tensor.token_scale, strict=True)
    ]
    return jnp.asarray(of_class, jnp.float32)[bank.class_map.classes()] + tensor.id_bits
