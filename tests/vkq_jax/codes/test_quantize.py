"""Properties of every code family."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax import (
    KVQuantConfig,
    LevelCodes,
    Quantile,
    Quantizer,
    SideTables,
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
    "kivi-2bit values": presets["kivi-2bit"].value,
    "none": presets["none"].key,
    "median": SignCodes(rotation=None, centre="median", group_size=4, beta=0.5),
}
for_every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=list(FAMILIES))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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
    rows = [quantize(jnp.asarray(row), config) for row in x.reshape(6, V, H)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(2, 3, *leaves[0].shape), *rows)
    assert_same(quantize(jnp.asarray(x), config), jax.tree.map(jnp.asarray, stacked))


@for_every_family
def test_jit_vmap_and_scan_change_nothing(config):
    x = jnp.asarray(normal(2, 3, V, H))
    expected = quantize(x, config)

    def code(x):
        return quantize(x, config)

    assert_same(jax.vmap(jax.vmap(code), in_axes=2)(jnp.moveaxis(x, 0, 2)), expected)
    scan = jax.jit(lambda x: jax.lax.scan(lambda carry, row: (carry, code(row)), None, x)[1])
    assert_same(scan(x), expected)
    decoded = jax.vmap(dequantize, out_axes=-1)(expected)
    np.testing.assert_allclose(np.moveaxis(decoded, -1, 0), dequantize(expected), atol=1e-5)


@for_every_family
def test_values_in_padding_change_nothing(config):
    valid = np.array([[True] * 7 + [False] * 3, [False] * 2 + [True] * 5 + [False] * 3])
    x = normal(2, V, H)

    def coded(padding):
        padded = jnp.asarray(np.where(valid[..., None], x, np.float32(padding)))
        return quantize(padded, config, valid=jnp.asarray(valid))

    clean = coded(0)
    for rubbish in (np.nan, np.inf, -1e30, 7):
        dirty = coded(rubbish)
        for a, b in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
            np.testing.assert_array_equal(a, b)
        assert np.isfinite(dequantize(dirty)).all()


@for_every_family
def test_padding_at_the_end_gives_the_values_without_it(config):
    x = normal(V, H)
    padded = quantize(jnp.asarray(x), config, valid=jnp.asarray(np.arange(V) < 7))
    without = dequantize(quantize(jnp.asarray(x[:7]), config))
    np.testing.assert_allclose(dequantize(padded)[:7], without, rtol=2**-7, atol=1e-5)


@for_every_family
def test_no_positions(config):
    x = jnp.zeros((2, 0, H))
    assert dequantize(quantize(x, config)).shape == x.shape


@for_every_family
def test_all_positions_are_padding(config):
    nothing = dequantize(quantize(jnp.ones((V, H)), config, valid=jnp.zeros(V, bool)))
    assert nothing.dtype == jnp.float32
    assert not nothing.any()


@pytest.mark.parametrize("num_positions", [1, 9])
@pytest.mark.parametrize("group_size", [1, 4, 9, 50])
@pytest.mark.parametrize("family", [LevelCodes, SignCodes])
def test_groups_cover_all_positions(family, group_size, num_positions):
    tensor = quantize(jnp.asarray(normal(num_positions, 8)), family(group_size=group_size))
    decoding = jax.eval_shape(lambda: tensor.decoding())
    assert decoding.channel_offset.shape[-2] == -(-num_positions // decoding.group_size)
    assert dequantize(tensor).shape == (num_positions, 8)


def test_valid_broadcasts():
    x, valid, config = jnp.asarray(normal(2, 3, V, H)), jnp.arange(V) < 4, LevelCodes()
    expected = quantize(x, config, valid=jnp.broadcast_to(valid, (2, 3, V)))
    for shape in ((V,), (1, 1, V)):
        assert_same(quantize(x, config, valid=valid.reshape(shape)), expected)


@pytest.mark.parametrize("gradient", ["straight_through", "zero"])
@for_every_family
def test_fake_quantize_is_the_round_trip(config, gradient):
    x = jnp.asarray(normal(V, H), jnp.bfloat16)
    actual = fake_quantize(x, config, gradient=gradient)
    assert actual.dtype == jnp.bfloat16
    expected = np.asarray(dequantize(quantize(x, config)))
    np.testing.assert_array_equal(actual, expected.astype(jnp.bfloat16))


@for_every_family
def test_gradients(config):
    x, weight, valid = normal(V, H), normal(V, H, seed=1), np.arange(V) < 7
    x[9] = np.nan

    def loss(x, gradient):
        decoded = fake_quantize(x, config, valid=jnp.asarray(valid), gradient=gradient)
        return jnp.sum(weight * decoded)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    through = gradient(jnp.asarray(x), "straight_through")
    np.testing.assert_array_equal(through, np.where(valid[:, None], weight, 0))
    assert not gradient(jnp.asarray(x), "zero").any()


def test_straight_through_in_forward_mode():
    x, tangent = jnp.asarray(normal(V, H)), jnp.asarray(normal(V, H, seed=1))
    _, through = jax.jvp(lambda x: fake_quantize(x, LevelCodes()), (x,), (tangent,))
    np.testing.assert_array_equal(through, tangent)


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


def test_a_tensor_of_pytorch_that_numpy_cannot_read_says_how_to_make_one():
    class Tensor:
        dtype, shape = "torch.bfloat16", (2, 4)
        detach = None

        def __array__(self, *_, **__):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    message = r"x: expected .*got torch.bfloat16 \[2, 4\]; write x.detach\(\).cpu\(\).float\(\)"
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(quantize)(Tensor(), LevelCodes())


def test_quantizers_of_ones_own_that_cannot_work_are_named():
    class Bare(Quantizer):
        def quantize(self, x, valid):
            return x

    @dataclasses.dataclass
    class Mutable(Bare):
        bits: int = 1

    x = jnp.ones((2, 4))
    with pytest.raises(ValueError, match=r"config must be hashable, a @dataclass\(frozen=True\)"):
        quantize(x, Mutable())
    with pytest.raises(ValueError, match="value must be hashable"):
        KVQuantConfig(key=LevelCodes(), value=Mutable())
    with pytest.raises(ValueError, match=r"Bare.quantize must return codes, .* got float32 \[2, 4"):
        quantize(x, Bare())


def test_tables_that_no_code_would_read_are_refused():
    x, tables = jnp.ones((2, 4)), SideTables()
    with pytest.raises(ValueError, match=r"tables: expected None.* LevelCodes"):
        quantize(x, LevelCodes(), tables=tables)
    with pytest.raises(ValueError, match=r"tables: expected None.* LevelTensor"):
        dequantize(quantize(x, LevelCodes()), tables)
