"""Fitted tables: bits where the energy is, unbiased, better than what knows nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax import DictionaryCodes, SideTables, TokenClass, dequantize, quantize
from vkq_jax.codes.codebooks import fit_codebook
from vkq_jax.codes.fitting import _measure, fit_dictionary, metric_root, mixed_basis

K, N, H = 2, 3000, 32
ONE = (TokenClass(1, 1),)


def channels(seed: int, heads: int = K, count: int = N) -> jax.Array:
    """Tokens whose energy lies in few directions, unlike in each head; the same for every seed."""
    rotation = np.linalg.qr(np.random.default_rng(7).normal(size=(heads, H, H)))[0]
    size = np.geomspace(8.0, 0.05, H)
    draw = np.random.default_rng(seed).normal(size=(heads, count, H)) * size
    return jnp.asarray(draw @ np.swapaxes(rotation, -1, -2), jnp.float32)


def error(x, x_hat, metric=None):
    difference, x = (a if metric is None else a @ metric for a in (x_hat - x, x))
    return float(jnp.square(difference).sum() / jnp.square(x).sum())


@pytest.mark.parametrize("virtual", [0, 20, 32, 96, 7 * H])
def test_every_bit_is_spent_once(virtual):
    tables = fit_dictionary(channels(0), jnp.ones((K, N)), None, virtual)
    assert tables.virtual == virtual
    bits = np.log2(np.asarray(tables.top) + 1)
    np.testing.assert_array_equal(bits.sum(-1), virtual)
    for head in range(K):
        pairs = set(zip(*map(np.asarray, (tables.channel[head], tables.shift[head])), strict=True))
        expected = {(i, j) for i, b in enumerate(bits[head].astype(int)) for j in range(b)}
        assert pairs == expected


def test_more_bits_than_channels_take_are_refused():
    with pytest.raises(ValueError, match=r"virtual: expected \[0, 224\] .* got 225"):
        fit_dictionary(channels(0), jnp.ones((K, N)), None, 7 * H + 1)


@pytest.mark.parametrize("scale", [None, "norm"])
def test_codes_of_other_tokens_are_unbiased_and_close(scale):
    """Fitted on some tokens and used on others: every direction keeps its length on average."""
    train, test = channels(1), channels(2)

    def scaled(x):
        if scale is None:
            return x
        return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True))

    classes = fit_dictionary(scaled(train), jnp.ones((K, N)), None, H)
    codes = DictionaryCodes(ONE, learned=True, scale=scale)
    tables = SideTables(classes=(classes,))
    got = dequantize(quantize(test, codes, tables=tables), tables)
    hadamard = dequantize(quantize(test, DictionaryCodes(ONE)))
    assert error(test, got) < 0.15 * error(test, hadamard)
    centred, decoded = (x - x.mean(-2, keepdims=True) for x in (test, got))
    strong = jnp.einsum("knh,kch->knc", centred, classes.analysis.astype(jnp.float32))[..., -8:]
    same = jnp.einsum("knh,kch->knc", decoded, classes.analysis.astype(jnp.float32))[..., -8:]
    ratio = np.asarray((strong * same).sum(1) / (strong * strong).sum(1))
    assert np.abs(ratio - 1).max() < 0.06


def test_a_metric_moves_the_bits_to_what_queries_read():
    x = channels(3)
    direction = np.random.default_rng(0).normal(size=(K, H))
    moment = jnp.asarray(np.einsum("kh,kg->khg", direction, direction), jnp.float32)
    root = metric_root(moment)
    found = {}
    for name, metric in (("queries", root), ("plain", None)):
        codes = DictionaryCodes(ONE, learned=True, scale=None, metric=metric is not None)
        tables = SideTables(
            metric=metric, classes=(fit_dictionary(x, jnp.ones((K, N)), metric, H),)
        )
        found[name] = error(x, dequantize(quantize(x, codes, tables=tables), tables), root)
    assert found["queries"] < 0.5 * found["plain"]


def test_the_root_of_a_metric():
    moment = jnp.asarray(np.cov(np.random.default_rng(0).normal(size=(H, 100))), jnp.float32)[None]
    root = metric_root(moment)
    square = np.asarray(root[0] @ root[0])
    np.testing.assert_allclose(np.trace(square), H, rtol=1e-4)
    expected = moment[0] + 0.02 * np.trace(moment[0]) / H * np.eye(H)
    np.testing.assert_allclose(square, expected * H / np.trace(expected), rtol=1e-3, atol=1e-4)


def test_a_codebook_finds_the_kinds_of_tokens_and_weighs_them():
    rng = np.random.default_rng(0)
    kinds = jnp.asarray(10 * rng.normal(size=(K, 4, H)), jnp.float32)
    number = rng.integers(0, 4, (K, N))
    x = jnp.take_along_axis(kinds, number[..., None], axis=1)
    x = x + 0.1 * jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    book = fit_codebook(x, jnp.ones((K, N)), 16, jax.random.key(0))
    nearest = jnp.square(x[:, :, None] - book[:, None]).sum(-1).min(-1)
    assert float(nearest.mean()) < 0.02 * H
    light = 1e-4 * jnp.asarray(number == 1, jnp.float32)  # whatever the weights' own size is
    only = fit_codebook(x, light, 1, jax.random.key(0))
    np.testing.assert_allclose(only[:, 0], kinds[:, 1], atol=0.05)
    with pytest.raises(ValueError, match="at least 3001 tokens of each head, got 3000"):
        fit_codebook(x, jnp.ones((K, N)), 3001, jax.random.key(0))


def test_channels_are_measured_with_the_best_uniform_grids():
    """Distortions of N(0, 1) by bits: Max 1960, table II."""
    x = jax.random.normal(jax.random.key(1), (1, 20_000, 2), jnp.float32)
    eye = jnp.eye(2)[None]
    _, distortion, _, _ = _measure(x, jnp.ones(x.shape[:2]), eye, eye)
    expected = [1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.00104]
    np.testing.assert_allclose(distortion[0, :, :7], [expected] * 2, rtol=0.05)


def test_mixed_channels_share_a_moment_and_the_bits_evenly():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 500, 16)) * np.exp(rng.normal(size=16)), jnp.float32)
    moment = jnp.einsum("knh,kng->khg", x, x)
    basis = mixed_basis(moment)
    shared = jnp.einsum("khc,khg,kgc->kc", basis, moment, basis)
    each = jnp.trace(moment, axis1=-2, axis2=-1) / 16
    np.testing.assert_allclose(shared, jnp.broadcast_to(each[:, None], shared.shape), rtol=1e-3)
    tables = fit_dictionary(x, jnp.ones((2, 500)), None, 32, basis)
    np.testing.assert_array_equal(tables.top, 3)
    analysis = tables.analysis.astype(jnp.float32)
    np.testing.assert_allclose(analysis, jnp.swapaxes(basis, -1, -2), atol=2**-8)
