"""Codes of a prompt's visual tokens, layer by layer: made, and put into a stack over layers."""

from functools import partial

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.backend import Backend
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.passes.joined_codes import Coded, JoinedCodes
from vkq_jax.pytree import take_layer
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["code_layer", "coding_room", "nothing_coded", "put_coded"]


def code_layer(
    backend: Backend,
    cache: KVCache,
    layer: Int32[Array, ""] | int,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    taken: Bool[Array, "B V"],
    output: Float[Array, "..."],
    attention: Float[Array, "B K V"] | None = None,
) -> tuple[Float[Array, "..."], Coded]:
    """The codes of one layer's tokens at `index`, and `output`, which waits for them.

    `attention` is that of these tokens, see `Backend.quantize`.
    """
    tables = take_layer(cache.tables, layer)
    coded = _code(backend, cache.quant, key, value, index, taken, tables, attention)
    # Codes first, then the next layer: or XLA may put off coding and keep the values.
    return jax.lax.optimization_barrier((output, coded))


# A function of its own under jit: a Python loop over layers traces it once.
@partial(jax.jit, static_argnums=(0, 1))
def _code(
    backend: Backend,
    quant: KVQuantConfig,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    taken: Bool[Array, "B V"],
    tables: CodeTables | None,
    attention: Float[Array, "B K V"] | None,
) -> Coded:
    bank = backend.quantize(key, value, index, taken, quant, tables, attention)
    codes = (bank.key, bank.value, bank.class_map)
    if not backend.joins_codes:
        return codes
    return JoinedCodes.of_layer(codes, (key.shape[0], key.shape[2]))


def coding_room(
    backend: Backend,
    cache: KVCache,
    index: Int32[Array, "B V"],
    taken: Bool[Array, "B V"],
    tokens: int,
    with_attention: bool,
) -> Coded:
    """Zeros of the shape of what coding makes of all layers, from `tokens` a sequence.

    `with_attention` says whether `code_layer` is given some.
    """
    num_layers, batch, num_kv_heads, _, head_dim = cache.text.key.shape
    x = jax.ShapeDtypeStruct((batch, tokens, num_kv_heads, head_dim), cache.text.dtype)
    code = partial(_code, backend, cache.quant)
    tables = jax.eval_shape(lambda: take_layer(cache.tables, 0))
    paid = jax.ShapeDtypeStruct((batch, num_kv_heads, index.shape[1]), jnp.float32)
    attention = paid if with_attention else None
    coded = jax.eval_shape(code, x, x, index, taken, tables, attention)
    return jax.tree.map(lambda leaf: jnp.zeros((num_layers, *leaf.shape), leaf.dtype), coded)


def put_coded[C](
    stack: C, layer: Int32[Array, ""] | int, coded: C, own: Bool[Array, ""] | None = None
) -> C:
    """The stack with a layer's codes in it; with those that it holds where they are not `own`."""

    def put(stack, x):
        if own is not None:
            x = jnp.where(own, x, take_layer(stack, layer))
        return jax.lax.dynamic_update_index_in_dim(stack, x.astype(stack.dtype), layer, 0)

    return jax.tree.map(put, stack, coded)


def nothing_coded(coded: Coded | None) -> Coded | None:
    """Zeros in the place of one layer's codes, where `coded` holds those of all layers."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), coded)
