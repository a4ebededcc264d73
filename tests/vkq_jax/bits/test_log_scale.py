import jax.numpy as jnp
import numpy as np

from vkq_jax.bits import log_scale


def test_every_code_is_a_fixed_point():
    codes = jnp.arange(256).astype(jnp.uint8)
    np.testing.assert_array_equal(log_scale.encode(log_scale.decode(codes)), codes)


def test_zero_is_exact_and_rounding_saturates():
    a = jnp.array([0.0, 1e-9, 1.0, 1e9])
    assert log_scale.encode(a).tolist() == [0, 0, 128, 255]
    assert log_scale.decode(log_scale.encode(a))[:3].tolist() == [0, 0, 1]


def test_relative_error_is_small_and_has_almost_no_mean():
    a = jnp.exp(jnp.linspace(-10, 10, 100_001))
    error = log_scale.decode(log_scale.encode(a)) / a - 1
    assert jnp.abs(error).max() < 0.045
    assert 0 < error.mean() < 4e-4


def test_what_has_no_code():
    a = jnp.asarray([jnp.nan, jnp.inf, 3e38, 1e-38], jnp.float32)
    assert log_scale.encode(a).tolist() == [0, 255, 255, 0]
