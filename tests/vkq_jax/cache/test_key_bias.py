import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.caches import Shape, attend, oracle, random_layer
from vkq_jax import KeyBias
from vkq_jax.cache.key_bias import visual_reach

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
    rotated = bias.rotated(positions)
    # RoPE by its definition, on complex numbers.
    of_pair = positions[..., None] if axes is None else positions[..., jnp.asarray(axes)]
    wave = 1.3 * np.exp(1j * np.asarray(of_pair) * np.asarray(bias.frequencies))
    b = np.asarray(bias.bias)
    pairs = (b[:, :HALF] + 1j * b[:, HALF : 2 * HALF]) * wave[:, :, None]
    still = np.broadcast_to(b[:, 2 * HALF :], (*rotated.shape[:3], HEAD_DIM - 2 * HALF))
    # float32 knows an angle of 40 radians to 4e-6 of them.
    np.testing.assert_allclose(
        rotated, np.concatenate([pairs.real, pairs.imag, still], -1), atol=1e-4
    )
    expected = np.einsum("bkqh,bvkh->bkqv", q, rotated)
    np.testing.assert_allclose(bias.scores(q, positions), expected, atol=1e-4)
    key = rotated + 1.0
    np.testing.assert_allclose(bias.taken_out(key, positions), jnp.ones_like(key), atol=1e-5)


@pytest.mark.parametrize("head_dim", [2 * HALF, HEAD_DIM], ids=["all turn", "some stay"])
@pytest.mark.parametrize("axes", [None, (0, 2, 1)], ids=["one axis", "three axes"])
def test_scores_looked_up_by_position_are_those_of_float64(axes, head_dim):
    bias = bias_of(2, axes, head_dim, scaling=1.3)
    bias = dataclasses.replace(bias, bias=60 * bias.bias)  # as large as Qwen's
    rng = np.random.default_rng(1)
    for shape in [(2, 9), (2, 9, 3)] if axes else [(2, 9)]:
        positions = jnp.asarray(rng.integers(0, 700, shape), jnp.int32)
        q = jnp.asarray(rng.normal(size=(2, 2, 4, head_dim)), jnp.float32)
        known = bias.with_waves(700, 2000)
        assert known.waves.shape[:2] == (bias.num_axes, 700)
        got = jax.jit(lambda q, p, x: x.looked_up(q, x.entries(p)[:, None]))(q, positions, known)
        exact = shares_in_float64(q, bias, positions)
        assert np.linalg.norm(got - exact) < 1e-6 * np.linalg.norm(exact)
        assert np.linalg.norm(bias.scores(q, positions) - exact) < 1e-6 * np.linalg.norm(exact)


def shares_in_float64(q, bias, positions):
    """Angles are float32, as those of the keys that are coded without the bias."""
    axes = bias.axis_of_pair
    of_pair = positions[..., None] if positions.ndim == 2 else positions[..., jnp.asarray(axes)]
    angles = np.float64(np.float32(of_pair) * np.asarray(bias.frequencies))
    b = np.asarray(bias.bias, np.float64)
    pairs = (b[:, :HALF] + 1j * b[:, HALF : 2 * HALF]) * np.exp(1j * angles)[:, :, None]
    pairs *= np.float64(np.float32(bias.scaling))
    still = np.broadcast_to(b[:, 2 * HALF :], (*pairs.shape[:3], b.shape[1] - 2 * HALF))
    rotated = np.concatenate([pairs.real, pairs.imag, still], -1)
    return np.einsum("bkqh,bvkh->bkqv", np.asarray(q, np.float64), rotated)


def test_a_bound_of_positions():
    constant = jnp.full((1, 2), 300, jnp.int32)

    def of(*positions):
        return visual_reach([jnp.asarray(x, jnp.int32) for x in positions])

    assert of([[0, 5]]) == of([[0, 127]], [[3]]) == of([[[0, 9, 1]]], np.zeros((2, 0))) == 128
    assert of([[128]]) == 256
    assert of([[4095]]) == 4096
    assert of([[4096]]) == 4608
    assert of([[-1, 5]]) is None
    assert of() is None
    assert of(np.zeros((2, 0))) is None
    assert jax.eval_shape(lambda x: jnp.ones(visual_reach([x]) or 1), constant).shape == (1,)
    assert jax.eval_shape(lambda: jnp.ones(visual_reach([constant]))).shape == (384,)


def test_waves_are_made_where_they_pay():
    one, several = bias_of(2), bias_of(2, (0, 2, 1))
    assert one.with_waves(None, 100).waves is None
    assert one.with_waves(4096, 1024).waves is not None
    assert one.with_waves(4096, 1023).waves is None
    assert several.with_waves(1024, 10_000).waves is not None
    assert several.with_waves(1152, 10_000).waves is None  # more than ten bits can tell


@pytest.mark.parametrize("known", [False, True], ids=["any positions", "below a bound"])
@pytest.mark.parametrize("codes", ["vkq-1bit", "signs-1bit", "none"])
def test_attention_with_a_bias_equals_the_oracle(codes, known):
    shape = Shape(visual=((10, (10, 6)), (7, (0, 7))), num_queries=2, head_dim=HEAD_DIM)
    query, layer = random_layer(shape, vkq_jax.resolve(codes))
    rng = np.random.default_rng(2)
    banks = tuple(
        dataclasses.replace(bank, position=jnp.asarray(rng.integers(0, 30, (2, v)), jnp.int32))
        for bank, (v, _) in zip(layer.visual, shape.visual, strict=True)
    )
    layer = dataclasses.replace(layer, visual=banks, key_bias=bias_of(shape.num_kv_heads))
    expected = oracle(query, layer)
    if known:
        layer = dataclasses.replace(layer, key_bias=layer.key_bias.with_waves(30, 17))
        assert layer.key_bias.waves is not None
    got = attend(query, layer)
    np.testing.assert_allclose(got.output, expected.output, atol=1e-4)
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, atol=1e-4)
    without = attend(query, dataclasses.replace(layer, key_bias=None))
    assert jnp.abs(without.output - expected.output).max() > 0.1


def test_a_bank_without_positions_is_refused():
    query, layer = random_layer(Shape(head_dim=HEAD_DIM), vkq_jax.resolve("signs-1bit"))
    layer = dataclasses.replace(layer, key_bias=bias_of(2))
    with pytest.raises(ValueError, match="needs the RoPE positions"):
        attend(query, layer)
