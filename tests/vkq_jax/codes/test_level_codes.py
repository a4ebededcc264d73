import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkq_jax import MSE, Granularity, LevelCodes, MinMax, Quantile, dequantize, quantize
from vkq_jax.bits.packing import SUPPORTED_BITS

PER_CHANNEL, PER_TOKEN = Granularity.PER_CHANNEL, Granularity.PER_TOKEN
level_codes = st.builds(
    LevelCodes,
    bits=st.sampled_from(SUPPORTED_BITS),
    granularity=st.sampled_from(Granularity),
    group_size=st.sampled_from([None, 4, 8]),
    table_dtype=st.sampled_from(["bfloat16", "float32"]),
)


codes_of = jax.jit(lambda tensor: tensor.decoding().codes())


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def per_element(tensor, table):
    """A table of the tensor as [..., V, H]."""
    if tensor.granularity is PER_TOKEN:
        return np.repeat(np.asarray(table, np.float32), tensor.group_size, -1)
    rows = np.repeat(np.asarray(table, np.float32), tensor.group_size, -2)
    return rows[..., : tensor.packed.shape[-2], :]


@settings(max_examples=12, deadline=None)
@given(codes=level_codes, num_positions=st.sampled_from([1, 4, 13]), seed=st.integers(0, 99))
def test_error_is_half_a_step_within_the_range(codes, num_positions, seed):
    x = normal(seed, num_positions, 8)
    tensor = quantize(x, codes)
    lower, upper = (per_element(tensor, table) for table in (tensor.lower, tensor.upper))
    step = (upper - lower) / (2**codes.bits - 1)
    beyond = np.abs(
        np.clip(np.asarray(x), lower, upper) - np.asarray(x)
    )  # the rounding of the tables
    error = np.abs(np.asarray(dequantize(tensor)) - np.asarray(x))
    assert (error <= step / 2 + beyond + 1e-5).all()


@settings(max_examples=12, deadline=None)
@given(codes=level_codes, seed=st.integers(0, 99))
def test_values_are_levels(codes, seed):
    tensor = quantize(normal(seed, 2, 10, 8), codes)
    lower, upper = (per_element(tensor, table) for table in (tensor.lower, tensor.upper))
    code = np.asarray(codes_of(tensor))
    assert code.min() >= 0
    assert code.max() <= 2**codes.bits - 1
    levels = lower + (upper - lower) * code / (2**codes.bits - 1)
    np.testing.assert_allclose(dequantize(tensor), levels, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", SUPPORTED_BITS)
def test_minmax_codes_of_decoded_values_are_the_same(bits):
    codes = LevelCodes(bits=bits, group_size=8, table_dtype="float32")
    once = quantize(normal(1, 20, 16), codes)
    again = quantize(dequantize(once), codes)
    np.testing.assert_array_equal(again.packed, once.packed)
    np.testing.assert_allclose(dequantize(again), dequantize(once), atol=1e-6)


@pytest.mark.parametrize("rule", [Quantile(0.2), MSE()])
def test_groups_do_not_see_each_other(rule):
    """A ragged last group is what quantizing its positions alone gives."""
    x = normal(2, 11, 8)
    tensor = quantize(x, LevelCodes(range_rule=rule, group_size=4))
    assert tensor.lower.shape == (3, 8)
    parts = [quantize(x[i : i + 4], LevelCodes(range_rule=rule)) for i in (0, 4, 8)]
    values = np.concatenate([dequantize(part) for part in parts])
    np.testing.assert_array_equal(dequantize(tensor), values)


def test_per_token_groups_are_runs_of_channels():
    x = normal(3, 2, 5, 8)
    tensor = quantize(x, LevelCodes(bits=2, granularity=PER_TOKEN, group_size=4))
    assert tensor.lower.shape == (2, 5, 2)
    runs = np.asarray(x).reshape(2, 5, 2, 4)
    np.testing.assert_allclose(tensor.upper.astype(jnp.float32), runs.max(-1), rtol=2**-8)


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("value", [0.0, 1.7, -1e-40, 1e30])
def test_a_group_without_range_decodes_to_its_value(granularity, value):
    x = jnp.full((3, 4), value)
    tensor = quantize(x, LevelCodes(granularity=granularity, table_dtype="float32"))
    assert not tensor.packed.any()
    np.testing.assert_allclose(dequantize(tensor), value, atol=1e-37)


def test_a_level_is_above_the_midpoint():
    x = jnp.array([[0.0], [0.4], [0.5], [0.6], [1.0]])
    assert codes_of(quantize(x, LevelCodes()))[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_outside_the_range_codes_saturate():
    @dataclasses.dataclass(frozen=True)
    class Unit:
        def __call__(self, x, valid, bits):
            return jnp.zeros(x.shape[:-1]), jnp.ones(x.shape[:-1])

    tensor = quantize(jnp.array([[-9.0], [9.0]]), LevelCodes(bits=2, range_rule=Unit()))
    assert dequantize(tensor)[:, 0].tolist() == [0, 1]


def test_a_rule_that_makes_nan_of_nothing_does_no_harm():
    def mean_twice(x, valid, bits):
        mean = jnp.mean(x, axis=-1, where=valid)
        return mean, mean

    tensor = quantize(jnp.ones((2, 4)), LevelCodes(range_rule=mean_twice), valid=jnp.zeros(2, bool))
    assert not tensor.lower.any()


def test_settings_are_checked():
    for bad, message in [
        ({"bits": 3}, r"bits must be 1.6 or one of \(1, 2, 4, 8\), got 3"),
        ({"group_size": 0}, "group_size must be None or at least 1, got 0"),
        ({"group_size": -4}, "got -4"),
        ({"table_dtype": "int8"}, "table_dtype must be one of .*, got 'int8'"),
    ]:
        with pytest.raises(ValueError, match=message):
            LevelCodes(**bad)
    # Without the type checker that the tests run under, as users do.
    check = inspect.unwrap(LevelCodes.__post_init__)
    codes = LevelCodes()
    object.__setattr__(codes, "granularity", "per_channel")
    with pytest.raises(ValueError, match=r"Granularity.PER_CHANNEL or .*, got 'per_channel'"):
        check(codes)


def test_group_size_must_divide_head_dim_per_token():
    codes = LevelCodes(granularity=PER_TOKEN, group_size=3)
    with pytest.raises(ValueError, match="must divide head_dim 8, got 3"):
        quantize(jnp.ones((2, 8)), codes)


def test_a_rule_of_the_wrong_shape_is_named():
    def whole(x, valid, bits):
        return x.min(), x.max()

    with pytest.raises(ValueError, match=r"whole.* must return levels of shape \(1, 8\), got"):
        quantize(jnp.ones((2, 8)), LevelCodes(range_rule=whole))


@pytest.mark.parametrize("range_rule", [MinMax(), MSE(), Quantile(0.0)])
@pytest.mark.parametrize("bits", [1, 2])
def test_levels_at_the_edge_of_float32(range_rule, bits):
    x = jnp.asarray([[-1e38], [1e38], [-1e38], [1e38]], jnp.float32)
    codes = LevelCodes(bits=bits, range_rule=range_rule, table_dtype="float32")
    np.testing.assert_allclose(dequantize(quantize(x, codes)), x, rtol=1e-6)


def test_a_float16_table_saturates():
    x = jnp.asarray([[-1e6], [0.0], [1e6]], jnp.float32)
    got = dequantize(quantize(x, LevelCodes(bits=8, table_dtype="float16")))
    np.testing.assert_allclose(got, [[-65504.0], [0.0], [65504.0]], atol=65504 / 255 * 1.01)


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_makes_its_group_nan(granularity, bad):
    codes = LevelCodes(group_size=2, granularity=granularity)
    x = normal(0, 4, 4)
    spoilt, clean = (np.asarray(dequantize(quantize(v, codes))) for v in (x.at[2, 1].set(bad), x))
    group = np.s_[2:4, 1:2] if granularity is PER_CHANNEL else np.s_[2:3, 0:2]
    expected = clean.copy()
    expected[group] = np.nan
    np.testing.assert_array_equal(spoilt, expected)
    assert codes_of(quantize(x.at[2, 1].set(bad), codes))[group].tolist() in ([[0], [0]], [[0, 0]])
