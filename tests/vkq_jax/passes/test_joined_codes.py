"""Codes of many small arrays joined into few, and taken apart again."""

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.passes.joined_codes import JoinedCodes


def codes_of_layer(layer: int) -> dict[str, jax.Array | tuple[jax.Array, ...] | None]:
    rng = np.random.default_rng(layer)

    def drawn(dtype, *shape):
        raw = rng.integers(0, 256, (2, 3, *shape, jnp.dtype(dtype).itemsize), np.uint8)
        return jnp.asarray(raw.view(dtype)[..., 0])

    return {
        "words": drawn(np.uint32, 90),
        "scales": (drawn(np.uint8, 7), drawn(np.uint8, 2, 4)),
        "centre": drawn(jnp.bfloat16, 1, 5),
        "counts": drawn(np.int32, 4),
        "factor": drawn(np.float32),
        "nothing": jnp.zeros((2, 3, 0), jnp.uint32),
        "none": None,
        "of_sequences": jnp.arange(2) + layer,
        "marks": jnp.asarray([[True, False, True]] * 2),
    }


def bits(x):
    return np.ascontiguousarray(x).view(np.uint8)


def test_stacks_of_joined_codes_are_the_codes_of_all_layers():
    joined = [JoinedCodes.of_layer(codes_of_layer(layer), (2, 3)) for layer in range(4)]
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), *joined)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *map(codes_of_layer, range(4)))
    found = stack.of_all_layers()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(bits(x), bits(y))


def test_small_arrays_are_one():
    joined = JoinedCodes.of_layer(codes_of_layer(0), (2, 3))
    assert sorted(x.shape for x in joined.large) == [(2,), (2, 3), (2, 3, 90)]
    assert joined.small is not None
    # 2 + 2 words of scales, 3 of a centre, 4 counts, a factor.
    assert joined.small.shape == (2, 3, 12)


def test_large_arrays_are_not_copied():
    codes = {"key": jnp.ones((1, 2, 8, 4), jnp.bfloat16), "value": jnp.ones((1, 2, 8, 4))}
    joined = JoinedCodes.of_layer(codes, (1, 2))
    assert joined.small is None
    assert [id(x) for x in joined.large] == [id(codes["key"]), id(codes["value"])]
