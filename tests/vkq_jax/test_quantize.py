"""What holds for every code family."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax import (
    MSE,
    LevelCodes,
    Quantile,
    SignCodes,
    dequantize,
    fake_quantize,
    presets,
    quantize,
)

V, H = 10, 32
FAMILIES = {
    "vkq-1bit": presets["vkq-1bit"].key,
    "quantile-1bit": LevelCodes(range_rule=Quantile(0.2), group_size=4),
    "calibquant-1bit": presets["calibquant-1bit"].key,
    "minmax-8bit": presets["minmax-8bit"].key,
    "kivi-2bit values": presets["kivi-2bit"].value,
    "none": presets["none"].key,
    "mse": LevelCodes(bits=2, range_rule=MSE(), group_size=4),
    "median": SignCodes(rotation=None, centre="median", group_size=4, beta=0.5),
}
for_every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=list(FAMILIES))


def normal(*shape, dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def assert_same(actual, expected):
    """Same structure, and leaves equal up to the rounding that a compiler may choose."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if jnp.issubdtype(a.dtype, jnp.integer):
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2**-7, atol=1e-6)


@for_every_family
def test_leading_axes_are_independent(config):
    x = normal(2, 3, V, H)
    rows = [quantize(row, config) for row in x.reshape(6, V, H)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves).reshape(2, 3, *leaves[0].shape), *rows)
    assert_same(quantize(x, config), stacked)


@for_every_family
def test_jit_vmap_and_scan_change_nothing(config):
    x = normal(2, 3, V, H)
    expected = quantize(x, config)

    def code(x):
        return quantize(x, config)

    assert_same(jax.jit(code)(x), expected)
    assert_same(jax.vmap(jax.vmap(code))(x), expected)
    assert_same(jax.vmap(code, in_axes=2)(jnp.moveaxis(x, 0, 2)), expected)
    assert_same(jax.lax.scan(lambda carry, x: (carry, code(x)), None, x)[1], expected)
    decoded = jax.vmap(dequantize, out_axes=-1)(expected)
    np.testing.assert_allclose(jnp.moveaxis(decoded, -1, 0), dequantize(expected), atol=1e-5)


@for_every_family
def test_values_in_padding_change_nothing(config):
    valid = jnp.array([[True] * 7 + [False] * 3, [False] * 2 + [True] * 5 + [False] * 3])
    x = normal(2, V, H)
    clean = quantize(jnp.where(valid[..., None], x, 0.0), config, valid=valid)
    for rubbish in (jnp.nan, jnp.inf, -1e30, 7.0):
        dirty = quantize(jnp.where(valid[..., None], x, rubbish), config, valid=valid)
        for a, b in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
            np.testing.assert_array_equal(a, b)
        assert jnp.isfinite(dequantize(dirty)).all()


@for_every_family
def test_padding_at_the_end_gives_the_values_without_it(config):
    x = normal(7, H)
    padded = jnp.concatenate([x, normal(3, H, seed=1)])
    tensor = quantize(padded, config, valid=jnp.arange(V) < 7)
    without = dequantize(quantize(x, config))
    np.testing.assert_allclose(dequantize(tensor)[:7], without, rtol=2**-7, atol=1e-5)


@for_every_family
def test_no_positions(config):
    x = normal(2, 0, H)
    assert dequantize(quantize(x, config)).shape == x.shape


@for_every_family
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_any_floating_dtype_and_all_padding(config, dtype):
    x = normal(V, H, dtype=dtype)
    assert fake_quantize(x, config).dtype == dtype
    nothing = dequantize(quantize(x, config, valid=jnp.zeros(V, bool)))
    assert nothing.dtype == jnp.float32
    assert not nothing.any()


@pytest.mark.parametrize("num_positions", [1, 9])
@pytest.mark.parametrize("group_size", [1, 4, 9, 50])
@pytest.mark.parametrize("family", [LevelCodes, SignCodes])
def test_groups_cover_all_positions(family, group_size, num_positions):
    tensor = quantize(normal(num_positions, 8), family(group_size=group_size))
    decoding = tensor.decoding()
    assert decoding.channel_offset.shape[-2] == -(-num_positions // decoding.group_size)
    assert dequantize(tensor).shape == (num_positions, 8)


def test_valid_broadcasts():
    x, valid = normal(2, 3, V, H), jnp.arange(V) < 4
    config = LevelCodes()
    expected = quantize(x, config, valid=jnp.broadcast_to(valid, (2, 3, V)))
    for shape in ((V,), (1, 1, V)):
        assert_same(quantize(x, config, valid=valid.reshape(shape)), expected)


@for_every_family
def test_fake_quantize_is_the_round_trip(config):
    x = normal(V, H, dtype=jnp.bfloat16)
    expected = dequantize(quantize(x, config)).astype(jnp.bfloat16)
    for gradient in ("straight_through", "zero"):
        np.testing.assert_array_equal(fake_quantize(x, config, gradient=gradient), expected)


@for_every_family
def test_gradients(config):
    x, weight = normal(V, H), normal(V, H, seed=1)
    valid = jnp.arange(V) < 7
    x = x.at[9].set(jnp.nan)

    def loss(x, gradient):
        decoded = fake_quantize(x, config, valid=valid, gradient=gradient)
        return jnp.sum(weight * decoded)

    through = jax.jit(jax.grad(loss), static_argnums=1)(x, "straight_through")
    np.testing.assert_array_equal(through, jnp.where(valid[:, None], weight, 0.0))
    assert not jax.grad(loss)(x, "zero").any()
    tangent = jax.jvp(lambda x: fake_quantize(x, config), (weight,), (weight,))[1]
    np.testing.assert_array_equal(tangent, weight)


def test_bad_arguments_are_named():
    x = jnp.ones((2, 4))
    # Without the type checker that the tests run under, as users call it.
    unchecked, config = inspect.unwrap(quantize), LevelCodes()
    for args, kwargs, message in [
        ((x, presets["none"]), {}, r"one code family, such as .*\.key \(or \.value\), got KVQuant"),
        ((x, "vkq-1bit"), {}, "got 'vkq-1bit'"),
        ((x.astype(jnp.int32), config), {}, r"x must be floating.*got int32 of shape \(2, 4\)"),
        ((x[0], config), {}, r"got float32 of shape \(4,\)"),
        ((x, config), {"valid": jnp.ones(3, bool)}, r"broadcast to .* = \(2,\).*of shape \(3,\)"),
        ((x, config), {"valid": jnp.ones(2, jnp.int32)}, "valid must be boolean.*got int32"),
    ]:
        with pytest.raises(ValueError, match=message):
            unchecked(*args, **kwargs)
    with pytest.raises(ValueError, match='"straight_through" or "zero", got \'none\''):
        inspect.unwrap(fake_quantize)(x, config, gradient="none")
