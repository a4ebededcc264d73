"""Arguments that `checked` refuses, and in which words."""

import jax
import jax.numpy as jnp
import pytest

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Float


@checked
def scaled(x: Float[Array, "n"], times: int) -> Float[Array, "n"]:
    return x * times


def test_a_number_has_to_be_static_and_an_array_has_not():
    x = jnp.ones(3)
    assert jax.jit(lambda x: scaled(x, 2))(x).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"^times must be an integer, static under jit, got"):
        jax.jit(scaled)(x, 2)
    with pytest.raises(ValueError, match=r"^times must be an integer, got 'two'$"):
        scaled(x, "two")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^x must be Float \[n\], got float32 \[1, 3\]\n"):
        jax.jit(scaled, static_argnums=1)(x[None], 2)


def test_too_few_arguments_are_told_in_pythons_words():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'times'"):
        scaled(jnp.ones(3))  # type: ignore[call-arg]
