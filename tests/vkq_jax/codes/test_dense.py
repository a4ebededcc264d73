import jax.numpy as jnp
import pytest

from vkq_jax import Dense, quantize


def test_values_stay_as_they_are_in_their_dtype():
    x = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]], jnp.bfloat16)
    tensor = quantize(x, Dense(), valid=jnp.array([True, False]))
    assert tensor.values.dtype == jnp.bfloat16
    assert tensor.values.tolist() == [[1, 2], [0, 0]]
    assert tensor.dequantize().dtype == jnp.float32


def test_there_are_no_codes():
    with pytest.raises(NotImplementedError, match="use its `values`"):
        quantize(jnp.ones((2, 2)), Dense()).decoding()
