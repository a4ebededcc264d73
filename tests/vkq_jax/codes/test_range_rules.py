import doctest
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax import MSE, LevelCodes, MinMax, Quantile, Shrink, dequantize, quantize
from vkq_jax.codes import range_rules

RULES = [MinMax(), Quantile(0.2), Shrink(0.5), MSE()]
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


# Compiled: operation by operation, most of the time would go into compiling.
ends = jax.jit(lambda rule, x, valid, bits: rule(x, valid, bits), static_argnums=(0, 3))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def squared_error(x, rule, bits=1):
    """Mean squared error of each channel's codes."""
    codes = LevelCodes(bits=bits, range_rule=rule, table_dtype="float32")
    return np.square(np.asarray(dequantize(quantize(x, codes))) - np.asarray(x)).mean(-2)


@by_rule
@pytest.mark.parametrize("bits", [1, 2])
def test_padding_has_no_influence(rule, bits):
    x = normal(3, 11)
    padded = jnp.pad(x, [(0, 0), (0, 5)], constant_values=np.nan)
    expected = ends(rule, x, jnp.ones(x.shape, bool), bits)
    np.testing.assert_allclose(ends(rule, padded, jnp.isfinite(padded), bits), expected, rtol=1e-5)


@by_rule
@pytest.mark.parametrize("bits", [1, 2])
def test_groups_of_nothing_and_of_one_value(rule, bits):
    x = jnp.full((2, 4), 3.0)
    lower, upper = ends(rule, x, jnp.array([[False] * 4, [True] * 4]), bits)
    assert lower[0] == upper[0] == 0
    assert lower[1] == upper[1]


def test_definitions():
    x, valid = jnp.array([[4.0, -2.0, 1.0, 9.0, 0.0]]), jnp.array([[True, True, True, False, True]])
    assert [end.item() for end in MinMax()(x, valid, 1)] == [-2, 4]
    assert [end.item() for end in Shrink(0.5)(x, valid, 1)] == [-1, 2]
    expected = np.quantile([4, -2, 1, 0], [0.1, 0.9])
    np.testing.assert_allclose(jnp.stack(Quantile(0.1)(x, valid, 1))[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MinMax(), 7.9),
        (Shrink(0.5), 1.33),
        (Shrink(0.3), 0.44),
        (Quantile(0.2125), 0.363),
        (MSE(), 0.363),
    ],
)
def test_relative_error_on_a_normal_distribution(rule, expected):
    """Errors of one bit on a normal distribution, 3328 positions."""
    x = normal(3328, 64)
    assert squared_error(x, rule).mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_mse_at_one_bit_is_the_best_split(seed):
    x = 100 + np.random.default_rng(seed).standard_t(2, 9).astype(np.float32)

    def error(part):
        return np.square(part - part.mean()).sum()

    ordered = np.sort(x)
    best = min(error(ordered[:k]) + error(ordered[k:]) for k in range(1, x.size))
    actual = squared_error(jnp.asarray(x)[:, None], MSE())[0] * x.size
    assert actual == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(("bits", "lloyd_max"), [(2, 0.1188), (4, 0.01154)])
def test_mse_finds_the_uniform_grid_of_the_normal_distribution(bits, lloyd_max):
    """Max, "Quantizing for minimum distortion" (1960), table II."""
    x = normal(3328, 64)
    assert squared_error(x, MSE(), bits).mean() == pytest.approx(lloyd_max, rel=0.05)


@pytest.mark.parametrize("bits", [2, 8])
def test_mse_is_never_worse_than_minmax(bits):
    rng = np.random.default_rng(2)
    for x in (
        rng.standard_t(2, (40, 32)),
        rng.integers(-3, 4, (40, 32)),
        50 + rng.random((40, 32)),
    ):
        x = jnp.asarray(x, jnp.float32)
        minmax = squared_error(x, MinMax(), bits)
        assert (squared_error(x, MSE(), bits) <= minmax * 1.001 + 1e-9).all()


def test_parameters_are_checked():
    for q in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match=r"q must be in \[0, 0.5\), got"):
            Quantile(q)
    for s in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="s must be positive and finite, got"):
            Shrink(s)


def test_rules_are_compared_by_value():
    assert len({*RULES, *RULES}) == len(RULES)
    assert all(a != b for a, b in itertools.combinations(RULES, 2))


def test_the_example_of_a_rule_of_ones_own():
    assert doctest.testmod(range_rules).failed == 0
