"""LevelCodes against the quantizer of CalibQuant's code (see goldens/calibquant.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax import LevelCodes, MinMax, Shrink, dequantize, quantize

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "calibquant.npz")


@pytest.mark.parametrize(
    ("case", "bits", "rule"),
    [
        ("1bit_keys", 1, Shrink(0.5)),
        ("1bit_values", 1, Shrink(0.3)),
        ("2bit", 2, MinMax()),
        ("4bit", 4, MinMax()),
        ("8bit", 8, MinMax()),
    ],
)
def test_same_codes_and_values(case, bits, rule):
    codes = LevelCodes(bits=bits, range_rule=rule, table_dtype="float32")
    tensor = quantize(jnp.asarray(GOLDEN["x"]), codes)
    actual = jax.jit(lambda tensor: tensor.decoding().codes())(tensor)
    np.testing.assert_array_equal(actual, GOLDEN[f"{case}_codes"])
    np.testing.assert_allclose(dequantize(tensor), GOLDEN[f"{case}_values"], atol=1e-5)
