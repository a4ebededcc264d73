"""The gated delta rule of linear attention (Qwen3.5), many tokens at once or one.

Each value head keeps a matrix S [key channels, value channels]. A token with key k, value v, decay
exp(g) and rate b turns S into exp(g) S + k (b (v - exp(g) S^T k))^T; its output is S^T q. Source:
Gated Delta Networks, arXiv 2412.06464; chunks of tokens at once as in DeltaNet, arXiv 2406.06484.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float
from vkq_jax.bits.exact_einsum import exact_einsum

__all__ = ["gated_delta_rule"]

_CHUNK = 64
_NORM_EPSILON = 1e-6


def gated_delta_rule(
    query: Float[Array, "B T k K"],
    key: Float[Array, "B T k K"],
    value: Float[Array, "B T v V"],
    decay: Float[Array, "B T v"],
    rate: Float[Array, "B T v"],
    state: Float[Array, "B v K V"],
) -> tuple[Float[Array, "B T v V"], Float[Array, "B v K V"]]:
    """Outputs of T tokens and the state after them, float32; see the module.

    Each key head serves as many value heads that follow each other. Queries and keys are normed to
    length 1 here, and queries divided by the square root of K. `decay` is g, at most 0; a token
    with g = 0 and rate 0 leaves the state as it is.
    """
    repeat = value.shape[2] // key.shape[2]
    query, key = (jnp.repeat(_unit(x), repeat, axis=2) for x in (query, key))
    query = query * key.shape[-1] ** -0.5
    tokens = value.shape[1]
    if tokens == 1:
        return _one_token(query, key, value, decay, rate, state)
    size = min(_CHUNK, tokens)
    arrays = (query, key, value.astype(jnp.float32), decay, rate)
    # [chunks, B, heads, chunk, ...]
    q, k, v, g, b = (_chunks(x, size) for x in arrays)
    coarse, fine = _running_sums(g)
    total = coarse + fine
    within = jnp.tril(jnp.ones((size, size), bool))
    steps, rest = (x[..., :, None] - x[..., None, :] for x in (coarse, fine))
    between = jnp.exp(jnp.where(within, steps + rest, -jnp.inf))
    with jax.default_matmul_precision("float32"):
        weighted = k * b[..., None]
        system = jnp.where(
            jnp.tril(within, -1), jnp.einsum("...ik,...jk->...ij", weighted, k) * between, 0.0
        )
        attention = jnp.einsum("...ik,...jk->...ij", q, k) * between
        right = jnp.concatenate([v * b[..., None], weighted * jnp.exp(total)[..., None]], axis=-1)
        solved = jax.scipy.linalg.solve_triangular(
            system + jnp.eye(size), right, lower=True, unit_diagonal=True
        )
        new, old = jnp.split(solved, (v.shape[-1],), axis=-1)
        q = q * jnp.exp(total)[..., None]
        k = k * between[..., -1, :, None]

        def chunk(state: Array, parts: tuple[Array, ...]) -> tuple[Array, Array]:
            q, k, new, old, attention, whole = parts
            added = new - old @ state
            output = q @ state + attention @ added
            return state * whole[..., None, None] + k.swapaxes(-1, -2) @ added, output

        whole = jnp.exp(total[..., -1])
        state, output = jax.lax.scan(
            chunk, state.astype(jnp.float32), (q, k, new, old, attention, whole)
        )
    output = output.transpose(1, 0, 3, 2, 4)  # [B, chunks, chunk, heads, V]
    return output.reshape(output.shape[0], -1, *output.shape[3:])[:, :tokens], state


def _one_token(
    query: Float[Array, "B 1 v K"],
    key: Float[Array, "B 1 v K"],
    value: Float[Array, "B 1 v V"],
    decay: Float[Array, "B 1 v"],
    rate: Float[Array, "B 1 v"],
    state: Float[Array, "B v K V"],
) -> tuple[Float[Array, "B 1 v V"], Float[Array, "B v K V"]]:
    """A decode step, without a system to solve.

    With S decayed, the next state is S + k d and the output q . S + (q . k) d, so that one product
    reads the state for both, and it is read once more to be changed.
    """
    query, key = query[:, 0], key[:, 0]
    decay, rate = jnp.exp(decay[:, 0, :, None]), rate[:, 0, :, None]
    state = state.astype(jnp.float32)
    rows = jnp.stack([query, key], axis=2) * decay[..., None]
    from_query, from_key = jnp.moveaxis(exact_einsum("bvrk,bvkd->bvrd", rows, state), 2, 0)
    added = rate * (value[:, 0].astype(jnp.float32) - from_key)
    output = from_query + (query * key).sum(-1, keepdims=True) * added
    return output[:, None], state * decay[..., None] + key[..., None] * added[..., None, :]


def _running_sums(
    decay: Float[Array, "*lead c"],
) -> tuple[Float[Array, "*lead c"], Float[Array, "*lead c"]]:
    """Running sums of at most 64 decays in two parts, whose differences keep a weak decay's digits.

    The first part is exact: multiples of 2^-11 up to 2^13. One float32 sum would round a weak
    decay after strong ones to the last digit of hundreds.
    """
    decay = jnp.maximum(decay, -128.0)  # exp(-128) is 0 in float32
    coarse = jnp.round(decay * 2048) / 2048
    return jnp.cumsum(coarse, axis=-1), jnp.cumsum(decay - coarse, axis=-1)


def _unit(x: Float[Array, "*lead n"]) -> Float[Array, "*lead n"]:
    """Vectors of length 1, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + _NORM_EPSILON)


def _chunks(x: Float[Array, "B T heads *rest"], size: int) -> Float[Array, "n B heads c *rest"]:
    """Tokens in chunks, zeros after the last one."""
    missing = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)))
    x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 3, 2)
