import jax.numpy as jnp
import pytest

from vkq_jax import (
    DictionaryCodes,
    LevelCodes,
    SideTables,
    TokenClass,
    cosine,
    quantization_error,
    relative_squared_error,
)


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


def test_codes_of_a_model_are_measured_with_its_tables():
    codebook = jnp.array([[[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 2.0, 1.0]]])
    x = codebook[:, jnp.array([0, 1, 1, 0])]
    codes = DictionaryCodes((TokenClass(1.0, 1),), centres=0, codebook=2)
    error = quantization_error(x, codes, tables=SideTables(codebook=codebook))
    assert error.relative_squared_error.tolist() == [0]
    with pytest.raises(ValueError, match="need the tables of a model"):
        quantization_error(x, codes)
