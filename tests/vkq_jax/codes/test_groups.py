import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vkq_jax
from vkq_jax import LevelCodes, SignCodes
from vkq_jax.codes import groups


@pytest.mark.parametrize(("group_size", "num_groups"), [(1, 5), (2, 3), (5, 1)])
def test_split_positions_keeps_every_element_once(group_size, num_groups):
    x = jnp.arange(30.0).reshape(5, 6)
    elements, valid = groups.split_positions(x, jnp.ones(5, bool), group_size)
    assert elements.shape == valid.shape == (num_groups, 6, group_size)
    assert valid.sum() == x.size
    np.testing.assert_array_equal(elements[-1, :, 0], x[(num_groups - 1) * group_size])


def test_per_position_repeats_a_groups_row():
    table = jnp.array([[1.0], [2.0]])
    assert groups.per_position(table, 3, 5)[:, 0].tolist() == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("group_size", "num_positions", "expected"), [(None, 7, 7), (4, 7, 4), (64, 7, 7), (None, 0, 1)]
)
def test_resolve_group_size(group_size, num_positions, expected):
    assert groups.resolve_group_size(group_size, num_positions) == expected


@pytest.mark.parametrize("table_dtype", groups.TABLE_DTYPES)
def test_tables_are_rounded_for_a_reader_in_the_same_computation_too(table_dtype):
    x = jnp.linspace(-3.0, 3.0, 50)
    read = jax.jit(lambda x: groups.as_stored(x, table_dtype).astype(jnp.float32))
    np.testing.assert_array_equal(read(x), x.astype(table_dtype).astype(jnp.float32))
    assert "optimization_barrier" in read.lower(x).as_text()  # a CPU rounds without it, too


@pytest.mark.parametrize("codes", [SignCodes(), LevelCodes()])
def test_codes_are_taken_around_tables_as_they_are_stored(codes):
    lowered = jax.jit(lambda x: vkq_jax.quantize(x, codes)).lower(jnp.ones((40, 64)))
    assert "optimization_barrier" in lowered.as_text()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), fraction=st.sampled_from([0.0, 0.1, 0.5, 0.99]))
def test_masked_quantiles_equal_numpys(data, fraction):
    floats = st.floats(-1e3, 1e3, width=32)
    x = np.array(data.draw(st.lists(floats, min_size=8, max_size=8)), np.float32)
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=8, max_size=8)))
    expected = np.quantile(x[valid], fraction) if valid.any() else 0
    quantiles = jax.jit(groups.masked_quantiles, static_argnums=2)
    (actual,) = quantiles(np.where(valid, x, np.float32(np.nan)), valid, fraction)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-2)


def test_masked_mean_of_nothing_is_zero():
    assert groups.masked_mean(jnp.full((1, 2), jnp.nan), jnp.zeros((1, 2), bool)) == 0


def test_what_is_coded_is_finite_and_says_what_was_not():
    x = jnp.asarray([[1.0, jnp.nan], [-jnp.inf, 9.0], [jnp.nan, -9.0]], jnp.float32)
    got, bad = groups.coded_input(x, jnp.asarray([True, True, False]), 4.0)
    assert got.tolist() == [[1, 0], [0, 4], [0, 0]]
    assert bad.tolist() == [[False, True], [True, False], [False, False]]
    got, bad = groups.coded_input(jnp.asarray([[70.0]], jnp.float16), jnp.asarray([True]), 1e38)
    assert (got.dtype, got.tolist(), bad.tolist()) == (jnp.float32, [[70.0]], [[False]])


def test_double_precision_saturates_too():
    with jax.enable_x64(True):
        x = jnp.asarray([[1e300, jnp.inf]], jnp.float64)
        got, bad = groups.coded_input(x, jnp.asarray([True]), groups.LARGEST)
    assert (got.dtype, got.tolist()) == (jnp.float32, [[groups.LARGEST, 0.0]])
    assert bad.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [("float16", 65504.0), ("bfloat16", groups.LARGEST), ("float32", groups.LARGEST)],
)
def test_tables_saturate(dtype, largest):
    table = jnp.asarray([3e38, -3e38, 2.0, jnp.nan, jnp.inf], jnp.float32)
    stored = groups.as_stored(table, dtype)
    assert stored.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(
        np.asarray(stored, np.float64), [largest, -largest, 2.0, np.nan, largest]
    )
    assert np.isfinite(np.float32(2 * groups.LARGEST))
