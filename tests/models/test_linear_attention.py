"""Linear attention: chunks against one token at a time, and padding anywhere."""

import jax
import jax.numpy as jnp
import numpy as np

from models.text.linear_attention import gated_delta_rule

TOKENS = 70  # two chunks


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def one_by_one(query, key, value, decay, rate, state):
    """The recurrence as the papers write it, in float64."""
    query, key = (np.repeat(unit(x.astype(np.float64)), 2, axis=2) for x in (query, key))
    query = query / np.sqrt(query.shape[-1])
    outputs, state = [], state.astype(np.float64)
    for t in range(value.shape[1]):
        state = state * np.exp(decay[:, t])[..., None, None]
        told = np.einsum("bhkv,bhk->bhv", state, key[:, t])
        added = rate[:, t][..., None] * (value[:, t] - told)
        state = state + key[:, t][..., None] * added[:, :, None]
        outputs.append(np.einsum("bhkv,bhk->bhv", state, query[:, t]))
    return np.stack(outputs, axis=1), state


def draw():
    rng = np.random.default_rng(0)
    sizes = [(2, TOKENS, 2, 5), (2, TOKENS, 2, 5), (2, TOKENS, 4, 3)]
    query, key, value = (rng.normal(size=size).astype(np.float32) for size in sizes)
    decay = -rng.exponential(0.3, (2, TOKENS, 4)).astype(np.float32)
    rate = rng.uniform(size=(2, TOKENS, 4)).astype(np.float32)
    decay[:, 66], rate[:, 66] = 0, 0  # padding
    return query, key, value, decay, rate, rng.normal(size=(2, 4, 5, 3)).astype(np.float32)


def test_chunks_are_tokens_one_by_one():
    arrays = draw()
    output, state = jax.jit(gated_delta_rule)(*map(jnp.asarray, arrays))
    expected, last = one_by_one(*arrays)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)
