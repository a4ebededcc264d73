import jax.numpy as jnp
import pytest

from vkq_jax import LevelCodes, cosine, quantization_error, relative_squared_error


def test_definitions_per_head():
    x = jnp.array([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    x_hat = jnp.array([[[3.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert relative_squared_error(x, x_hat).tolist() == pytest.approx([32 / 25, 0])
    assert cosine(x, x_hat).tolist() == [0.5, 0]
    valid = jnp.array([[True, False], [False, False]])
    assert relative_squared_error(x, x_hat, valid=valid).tolist() == [0, 0]
    assert cosine(x, x_hat, valid=valid).tolist() == [1, 0]
    both_of_one_head = jnp.array([[True, True], [False, False]])
    assert cosine(x, x_hat, valid=both_of_one_head).tolist() == [0.5, 0]


def test_quantization_error_has_one_number_per_head():
    x = jnp.arange(48.0).reshape(2, 3, 4, 2)
    error = quantization_error(x, LevelCodes(bits=8, table_dtype="float32"))
    assert error.cosine.shape == error.relative_squared_error.shape == (2, 3)
    assert error.cosine.min() == pytest.approx(1, abs=1e-4)
    assert error.relative_squared_error.max() < 1e-4
