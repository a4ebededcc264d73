"""Products straight from the words, as on a GPU, against products with unpacked codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax.bits import packed_products, packing
from vkq_jax.bits.exact_einsum import exact_einsum, large_einsum, split_einsum


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def same(got, expected):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "groups", "positions", "runs", "size"),
    [(1, 2, 70, 1, 48), (1, 1, 40, 2, 32), (2, 1, 40, 2, 32)],
)
def test_codes(bits, groups, positions, runs, size):
    """Whole words and parts of them, several groups and runs, positions that fill no word."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**bits, (2, groups, positions, runs * size))
    packed = packing.pack(jnp.asarray(codes, jnp.uint32), bits)
    rows, weights = (
        normal(rng, 2, 3, groups, runs, size),
        normal(rng, 2, 3, groups, positions, runs),
    )

    @jax.jit
    def both(rows, weights, packed):
        return [
            (
                packed_products.products(rows, packed, bits, straight),
                packed_products.sums(weights, packed, bits, size, straight and bits == 1),
            )
            for straight in (True, False)
        ]

    jax.tree.map(same, *both(rows, weights, packed))


@pytest.mark.parametrize(("positions", "size"), [(130, 40), (0, 32)])
def test_signs(positions, size):
    rng = np.random.default_rng(1)
    signs = rng.integers(0, 2, (2, positions, size))
    packed = packing.pack(jnp.asarray(signs, jnp.uint32), 1)
    rows, weights = normal(rng, 2, 3, size), normal(rng, 2, 3, positions)

    @jax.jit
    def both(rows, weights, packed):
        return [
            (
                packed_products.sign_products(rows, packed, straight),
                packed_products.sign_sums(weights, packed, size, straight),
            )
            for straight in (True, False)
        ]

    jax.tree.map(same, *both(rows, weights, packed))


def test_signs_have_a_gradient_and_map():
    """Products of queries and weights; under `vmap` nothing but the axis is new."""
    rng = np.random.default_rng(3)
    packed = jnp.asarray(rng.integers(0, 2**32, (2, 5, 1), dtype=np.uint32))
    rows, weights = normal(rng, 2, 3, 32), normal(rng, 2, 3, 5)

    def total(rows, weights, packed, straight):
        products = packed_products.sign_products(rows, packed, straight)
        sums = packed_products.sign_sums(weights, packed, 32, straight)
        return (products**2).sum() + (sums**3).sum()

    def gradients(straight):
        each = jax.grad(lambda *x: total(*x, straight), argnums=(0, 1))
        return jax.jit(jax.vmap(each))(rows, weights, packed)

    jax.tree.map(same, gradients(True), gradients(False))


def test_codes_without_words_of_their_own_are_refused():
    with pytest.raises(ValueError, match="codes of 4 bits in 1 runs of 8 have no words"):
        packed_products.products(jnp.ones((1, 1, 1, 8)), jnp.ones((1, 2, 1), jnp.uint32), 4, True)


def test_split_rows_keep_sixteen_bits(monkeypatch):
    """As on a GPU, where the tensor core's products take bfloat16."""
    rng = np.random.default_rng(2)
    rows, x = normal(rng, 2, 3, 64), normal(rng, 2, 50, 64).astype(jnp.bfloat16)
    spec = "...qh,...vh->...qv"
    expected = exact_einsum(spec, rows, x.astype(jnp.float32))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    same(split_einsum(spec, rows, x), expected)
    # A GPU's XLA takes bfloat16 and back for nothing, which would leave only eight bits.
    assert "reduce_precision" in str(jax.make_jaxpr(lambda rows: split_einsum(spec, rows, x))(rows))


def test_boolean_rows_need_no_second_part(monkeypatch):
    rng = np.random.default_rng(2)
    rows, x = jnp.asarray(rng.random((3, 50)) < 0.3), normal(rng, 50, 64).astype(jnp.bfloat16)
    run = functools.partial(split_einsum, "...qv,...vh->...qh")
    expected = run(rows, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    same(run(rows, x), expected)
    assert "reduce_precision" not in str(jax.make_jaxpr(run)(rows, x))


@pytest.mark.parametrize("rows", [8, 1100])
def test_large_products_keep_sixteen_bits(rows, monkeypatch):
    """As on a GPU: three products of tf32 for few rows, for many one of bfloat16."""
    rng = np.random.default_rng(2)
    a, b = normal(rng, 2, rows, 128), normal(rng, 3, 128)
    run = functools.partial(large_einsum, "anc,rc->anr")
    expected = run(a, b)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ("reduce_precision" in str(jax.make_jaxpr(run)(a, b))) == (rows > 1024)
    if rows > 1024:  # tf32 is a GPU's
        np.testing.assert_allclose(run(a, b), expected, rtol=1e-5, atol=1e-3)
