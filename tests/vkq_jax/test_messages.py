"""Values in error messages: short, on one line, and no array is fetched for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax import DenseTensor, Granularity, Quantile, messages, presets


class Unfetched:
    """Like an array on a device that must not be asked."""

    dtype, shape = "float32", (2, 3)

    def __repr__(self):
        raise AssertionError("it was fetched")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5, "1.5"),
        (None, "None"),
        (True, "True"),
        ("a\nb", r"'a\nb'"),
        (b"\xff", r"b'\xff'"),
        (np.float32(2), "np.float32(2.0)"),
        (float, "<class 'float'>"),
        (10**30, "1000000000...00000000000"),
        (Unfetched(), "float32 [2, 3]"),
        ([Unfetched()], "[float32 [2, 3]]"),
        (jnp.ones((2, 1)), "float32 [2, 1]"),
        ({"a": object()}, "{'a': a object}"),
        (Granularity.PER_TOKEN, "<Granularity.PER_TOKEN: 'per_token'>"),
        (Quantile(0.25), "Quantile(q=0.25)"),
        (DenseTensor(jnp.ones((2, 1))), "a DenseTensor"),
        ([[[[1]]]], "[[[...]]]"),
        (list(range(99)), "[0, 1, 2, 3, ...]"),
    ],
)
def test_a_value_in_a_message(value, shown):
    assert messages.show(value) == shown


def test_long_settings_and_texts_are_cut():
    assert messages.show(presets["signs-1bit"]).startswith("KVQuantConfig(key=SignCodes(")
    for value in (presets["signs-1bit"], "x" * 1000, [presets["signs-1bit"]] * 9):
        assert len(messages.show(value)) <= 100


def test_an_integer_that_python_does_not_write_out():
    assert messages.show(-(10**5000)) == "an integer of 16610 bits"
    assert messages.show([10**5000]) == "[an integer of 16610 bits]"


def test_a_traced_value_in_a_message():
    assert jax.jit(lambda x: len(messages.show(x)) * x)(jnp.int32(1)) == len("int32 []")
