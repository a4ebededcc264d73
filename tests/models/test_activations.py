"""Nonlinearities by their formulas, in float64 by NumPy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from models.layers.activations import Activation, activate

X = np.linspace(-6, 6, 41)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


FORMULAS = {
    Activation.GELU: X * np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)(X),
    Activation.GELU_TANH: X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))) / 2,
    Activation.QUICK_GELU: X * _sigmoid(1.702 * X),
    Activation.RELU: np.maximum(X, 0),
    Activation.SILU: X * _sigmoid(X),
}


@pytest.mark.parametrize("activation", Activation)
def test_activations_are_their_formulas(activation):
    got = activate(jnp.asarray(X, jnp.float32), activation)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, FORMULAS[activation], atol=2e-6, rtol=2e-6)
