"""Linear attention: chunks against one token at a time, and padding anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.text.delta_rule import gated_delta_rule

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


DECAYS = {
    "weak": lambda rng, size: rng.exponential(1e-3, size),
    "strong": lambda rng, size: rng.exponential(30, size),
    "mixed": lambda rng, size: np.exp(rng.uniform(-7, 4, size)),
}


def draw(decays):
    rng = np.random.default_rng(0)
    sizes = [(2, TOKENS, 2, 5), (2, TOKENS, 2, 5), (2, TOKENS, 4, 3)]
    query, key, value = (rng.normal(size=size).astype(np.float32) for size in sizes)
    decay = -DECAYS[decays](rng, (2, TOKENS, 4)).astype(np.float32)
    rate = rng.uniform(size=(2, TOKENS, 4)).astype(np.float32)
    decay[:, 66], rate[:, 66] = 0, 0  # padding
    return query, key, value, decay, rate, rng.normal(size=(2, 4, 5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(gated_delta_rule)


@pytest.mark.parametrize("decays", DECAYS)
def test_chunks_are_tokens_one_by_one(compiled, decays):
    """A chunk of strong and weak decays sums to hundreds; weak ones keep their digits."""
    arrays = draw(decays)
    output, state = compiled(*map(jnp.asarray, arrays))
    expected, last = one_by_one(*arrays)
    np.testing.assert_allclose(output, expected, atol=2e-6)
    np.testing.assert_allclose(state, last, atol=2e-6)


def test_a_decode_step_is_the_recurrence(compiled):
    query, key, value, decay, rate, state = draw("mixed")
    token = [x[:, :1] for x in (query, key, value, decay, rate)]
    output, new = compiled(*map(jnp.asarray, token), jnp.asarray(state))
    expected, last = one_by_one(*token, state=state)
    np.testing.assert_allclose(output, expected, atol=2e-6)
    np.testing.assert_allclose(new, last, atol=2e-6)
