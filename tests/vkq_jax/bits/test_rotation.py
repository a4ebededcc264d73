import jax
import numpy as np
import pytest

from vkq_jax.bits.rotation import hadamard, rotate, rotate_tokens, unrotate


@pytest.mark.parametrize("size", [1, 2, 48, 64, 80, 128])
def test_hadamard_is_orthonormal_and_symmetric(size):
    matrix = hadamard(size).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
    np.testing.assert_array_equal(matrix, matrix.T)


def test_unrotate_inverts_rotate():
    x = jax.random.normal(jax.random.key(0), (2, 3, 80))
    np.testing.assert_allclose(unrotate(rotate(x)), x, atol=1e-5)


def test_rotation_spreads_a_single_channel_evenly():
    one_hot = jax.nn.one_hot(5, 64)
    np.testing.assert_allclose(np.abs(rotate(one_hot)), 1 / 8, rtol=1e-6)


@pytest.mark.parametrize(("platform", "atol"), [("cpu", 1e-6), ("gpu", 1e-4)])
@pytest.mark.parametrize("size", [64, 80])
def test_tokens_are_rotated_channels_first(size, platform, atol, monkeypatch):
    """On a GPU in two parts of bfloat16."""
    x = 4 * jax.random.normal(jax.random.key(0), (2, 30, size))
    expected = np.moveaxis(np.asarray(rotate(x)), -1, 0)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    found = jax.jit(rotate_tokens)(x)
    np.testing.assert_allclose(found, expected, atol=4 * atol)
    assert np.abs(found - expected).mean() < atol
