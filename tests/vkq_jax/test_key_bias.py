import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.caches import Shape, attend, oracle, random_layer
from vkq_jax import KeyBias

HALF, HEAD_DIM = 3, 8
"""Two channels of each head do not turn."""


def bias_of(num_kv_heads, axes=None, head_dim=HEAD_DIM, scaling=1.0):
    rng = np.random.default_rng(0)
    return KeyBias(
        bias=jnp.asarray(5 * rng.normal(size=(num_kv_heads, head_dim)), jnp.float32),
        frequencies=jnp.asarray(rng.uniform(0.01, 1.0, HALF), jnp.float32),
        axis_of_pair=axes,
        scaling=scaling,
    )


@pytest.mark.parametrize("axes", [None, (0, 2, 1)], ids=["one axis", "three axes"])
def test_shares_of_scores_are_those_of_the_turned_bias(axes):
    bias = bias_of(2, axes, scaling=1.3)
    rng = np.random.default_rng(1)
    shape = (2, 9) if axes is None else (2, 9, 3)
    positions = jnp.asarray(rng.integers(0, 40, shape), jnp.int32)
    q = jnp.asarray(rng.normal(size=(2, 2, 4, HEAD_DIM)), jnp.float32)
    turned = bias.turned(positions)
    # RoPE by its definition, on complex numbers.
    of_pair = positions[..., None] if axes is None else positions[..., jnp.asarray(axes)]
    wave = 1.3 * np.exp(1j * np.asarray(of_pair) * np.asarray(bias.frequencies))
    b = np.asarray(bias.bias)
    pairs = (b[:, :HALF] + 1j * b[:, HALF : 2 * HALF]) * wave[:, :, None]
    still = np.broadcast_to(b[:, 2 * HALF :], (*turned.shape[:3], HEAD_DIM - 2 * HALF))
    # float32 knows an angle of 40 radians to 4e-6 of them.
    np.testing.assert_allclose(
        turned, np.concatenate([pairs.real, pairs.imag, still], -1), atol=1e-4
    )
    expected = np.einsum("bkqh,bvkh->bkqv", q, turned)
    np.testing.assert_allclose(bias.scores(q, positions), expected, atol=1e-4)
    key = turned + 1.0
    np.testing.assert_allclose(bias.taken_out(key, positions), jnp.ones_like(key), atol=1e-5)


@pytest.mark.parametrize("codes", ["vkq-1bit", "signs-1bit", "none"])
def test_attention_with_a_bias_equals_the_oracle(codes):
    shape = Shape(visual=((10, (10, 6)), (7, (0, 7))), num_queries=2, head_dim=HEAD_DIM)
    query, layer = random_layer(shape, vkq_jax.resolve(codes))
    rng = np.random.default_rng(2)
    banks = tuple(
        dataclasses.replace(bank, position=jnp.asarray(rng.integers(0, 30, (2, v)), jnp.int32))
        for bank, (v, _) in zip(layer.visual, shape.visual, strict=True)
    )
    layer = dataclasses.replace(layer, visual=banks, key_bias=bias_of(shape.num_kv_heads))
    got, expected = attend(query, layer), oracle(query, layer)
    np.testing.assert_allclose(got.output, expected.output, atol=1e-4)
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, atol=1e-4)
    without = attend(query, dataclasses.replace(layer, key_bias=None))
    assert jnp.abs(without.output - expected.output).max() > 0.1


def test_a_bank_without_positions_is_refused():
    query, layer = random_layer(Shape(head_dim=HEAD_DIM), vkq_jax.resolve("signs-1bit"))
    layer = dataclasses.replace(layer, key_bias=bias_of(2))
    with pytest.raises(ValueError, match="needs the RoPE positions"):
        attend(query, layer)
