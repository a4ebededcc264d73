import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkq_jax import SignCodes, dequantize, quantize
from vkq_jax.codes.sign_codes import error_ratio

V, H = 24, 32
score_error = jax.jit(lambda tensor: tensor.decoding().score_error)


def keys(seed, *shape):
    """Heavy tails, and an offset for each channel."""
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, 3, shape[-1])
    return jnp.asarray(rng.standard_t(4, shape) + offset, jnp.float32)


def parts(x, codes):
    """x - c, x_hat - c in float64 and the tensor."""
    tensor = quantize(x, codes)
    size = tensor.group_size
    centre = np.repeat(np.asarray(tensor.centre, np.float64), size, -2)[..., : x.shape[-2], :]
    return np.asarray(x) - centre, np.asarray(dequantize(tensor)) - centre, tensor


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 999),
    rotation=st.sampled_from([None, "hadamard"]),
    centre=st.sampled_from(["mean", "median"]),
    group_size=st.sampled_from([None, 5, 12]),
    scale_bits=st.sampled_from([8, 16]),
)
def test_gamma_one_is_unbiased(seed, rotation, centre, group_size, scale_bits):
    """<x_hat - c, x - c> = |x - c|^2 up to the rounding of the scale, whatever the centre."""
    codes = SignCodes(
        rotation=rotation, centre=centre, group_size=group_size, scale_bits=scale_bits
    )
    residual, decoded, _ = parts(keys(seed, 2, V, H), codes)
    ratio = (residual * decoded).sum(-1) / np.square(residual).sum(-1)
    np.testing.assert_allclose(ratio, 1, atol=2**-8 + 1e-4 if scale_bits == 16 else 0.045)
    if scale_bits == 8:
        assert ratio.mean() == pytest.approx(1, abs=0.02)


def test_gamma_zero_is_the_best_scale():
    x = keys(0, V, H)
    errors = {}
    for gamma in (0.0, 0.1, 0.5, 1.0):
        residual, decoded, _ = parts(x, SignCodes(gamma=gamma))
        errors[gamma] = np.square(residual - decoded).sum(-1)
    assert all((errors[0.0] <= errors[gamma] * 1.0001).all() for gamma in errors)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_score_error_is_the_error_of_gaussian_residuals(gamma):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(400, 128)), jnp.float32)
    tensor = quantize(x, SignCodes(gamma=gamma, beta=0.5))
    error = np.square(np.asarray(dequantize(tensor)) - np.asarray(x)).mean(-1)
    assert np.mean(score_error(tensor)) == pytest.approx(0.5 * error.mean(), rel=0.02)
    assert score_error(quantize(x, SignCodes(gamma=gamma))) is None


def test_error_ratio_at_both_ends():
    assert error_ratio(1.0) == pytest.approx(1 - 2 / np.pi)
    assert error_ratio(0.0) == pytest.approx(np.pi / 2 - 1)


@pytest.mark.parametrize(("centre", "statistic"), [("mean", np.mean), ("median", np.median)])
def test_centre_is_the_statistic_of_each_group(centre, statistic):
    x = keys(1, V, H)
    tensor = quantize(x, SignCodes(centre=centre, group_size=10, table_dtype="float32"))
    expected = [statistic(np.asarray(x[i : i + 10]), 0) for i in (0, 10, 20)]
    np.testing.assert_allclose(tensor.centre, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("scale_bits", [8, 16])
def test_a_token_at_the_centre_has_scale_zero(gamma, scale_bits):
    x = jnp.full((3, 8), 1.0)
    tensor = quantize(x, SignCodes(gamma=gamma, scale_bits=scale_bits, beta=0.5))
    assert not tensor.token_scale.any()
    np.testing.assert_allclose(dequantize(tensor), x, rtol=1e-6)
    assert not score_error(tensor).any()


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_scale_neither_underflows_nor_overflows(size):
    x = size * jnp.array([[1.0, -2.0], [-1.0, 2.0]])
    tensor = quantize(x, SignCodes(rotation=None))
    expected = np.full(2, size * 5 / 3)
    np.testing.assert_allclose(tensor.token_scale.astype(jnp.float32), expected, rtol=2**-8)


def test_shapes_and_dtypes():
    tensor = quantize(keys(2, 2, 3, V, H), SignCodes(group_size=10, scale_bits=8))
    assert (tensor.packed.shape, tensor.packed.dtype) == ((2, 3, V, 1), jnp.uint32)
    assert (tensor.centre.shape, tensor.centre.dtype) == ((2, 3, 3, H), jnp.bfloat16)
    assert (tensor.token_scale.shape, tensor.token_scale.dtype) == ((2, 3, V), jnp.uint8)
    assert quantize(keys(2, V, H), SignCodes()).token_scale.dtype == jnp.bfloat16


def test_settings_are_checked():
    for bad, message in [
        ({"gamma": -1.0}, "gamma must be finite and not negative, got -1"),
        ({"beta": float("nan")}, "beta must be finite and not negative, got nan"),
        ({"group_size": 0}, "group_size must be None or at least 1, got 0"),
        ({"table_dtype": "int8"}, "table_dtype must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            SignCodes(**bad)


@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("rotation", ["hadamard", None])
def test_what_is_not_finite_makes_its_group_nan(scale_bits, rotation):
    codes = SignCodes(group_size=2, scale_bits=scale_bits, rotation=rotation)
    x = keys(0, 4, H)
    tensor = quantize(x.at[2, 1].set(jnp.inf), codes)
    spoilt, clean = np.asarray(dequantize(tensor)), np.asarray(dequantize(quantize(x, codes)))
    assert np.isnan(spoilt[2:, slice(1, 2) if rotation is None else slice(None)]).all()
    np.testing.assert_array_equal(spoilt[:2], clean[:2])
    if rotation is None:
        assert np.isfinite(np.delete(spoilt, 1, axis=1)).all()


def test_the_edge_of_float32_saturates():
    signs = jnp.where(keys(0, 1, H) > 0, 3e38, -3e38).astype(jnp.float32)
    x = jnp.concatenate([signs, -signs, signs, -signs])  # around 0
    got = dequantize(quantize(x, SignCodes(rotation=None)))
    np.testing.assert_allclose(got, jnp.sign(x) * 2.0**100, rtol=0.02)
    tensor = quantize(x, SignCodes(scale_bits=8))
    assert tensor.token_scale.tolist() == [255] * 4
