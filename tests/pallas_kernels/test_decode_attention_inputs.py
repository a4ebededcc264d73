"""Inputs of decode attention that do not fit are errors."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from tests.support.caches import (
    Shape,
    random_layer,
    with_score_map,
)


def test_keeps_the_dtype_of_the_query():
    query, layer = random_layer(Shape(), vkq_jax.presets["signs-1bit"])
    assert pallas_kernels.decode_attention(query.astype(jnp.bfloat16), layer).dtype == jnp.bfloat16


def test_unknown_implementation_and_bad_shapes_are_errors():
    query, layer = random_layer(Shape(), vkq_jax.presets["none"])
    with pytest.raises(ValueError, match=r"one of mosaic_gpu, xla, reference or None, got 'cuda'"):
        pallas_kernels.decode_attention(query, layer, implementation="cuda")
    with pytest.raises(ValueError, match=r"multiple of 2, H=16\] for this cache, got \[2, 1, 3"):
        pallas_kernels.decode_attention(query[:, :, :3], layer)
    with pytest.raises(ValueError, match=r"score_map must be \[4\] .*, got \[2\]"):
        pallas_kernels.decode_attention(query, with_score_map(layer, 2))
    mapped = with_score_map(layer, 4)
    other = dataclasses.replace(mapped.score_map, quant=vkq_jax.presets["vkq-1bit"])
    with pytest.raises(ValueError, match="score_map was calibrated with other codes"):
        pallas_kernels.decode_attention(query, dataclasses.replace(mapped, score_map=other))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("logits_soft_cap", ["3", [5.0], True, 1e39, 1e-50], "logits_soft_cap must be a"),
        (
            "logits_scale",
            ["3", [5.0], True, float("nan"), float("inf"), -1e39],
            "logits_scale must be a",
        ),
    ],
)
def test_a_factor_that_is_no_number_is_an_error(as_users_run_it, name, values, message):
    query, layer = random_layer(Shape(visual=()), vkq_jax.presets["none"])
    text = jax.tree.map(lambda x: x[None], layer.text)
    none = jnp.zeros(2, jnp.int32)
    text = dataclasses.replace(text, length=layer.text.length)
    cache = vkq_jax.KVCache((), text, position=none, calibration_skipped=none, quant=layer.quant)

    def of_layer(query, layer, **options):
        return pallas_kernels.attend_layer(query, cache, 0, **options)

    for attend in (pallas_kernels.decode_attention, pallas_kernels.attend_cache, of_layer):
        for value in values:
            with pytest.raises(ValueError, match=rf"{message}.* or None.*, got"):
                attend(query, layer, **{name: value})
        traced = jax.jit(lambda value, attend=attend: attend(query, layer, **{name: value}))
        with pytest.raises(ValueError, match=rf"{message}.* static under jit, got"):
            traced(5.0)
        number = attend(query, layer, **{name: np.float32(5.0)})
        chex.assert_trees_all_equal(number, attend(query, layer, **{name: 5.0}))


def test_arrays_that_do_not_fit_are_errors(as_users_run_it):
    query, layer = random_layer(Shape(), vkq_jax.presets["none"])
    with pytest.raises(ValueError, match=r"query must be Float .* got int32"):
        pallas_kernels.decode_attention(query.astype(jnp.int32), layer)
    with pytest.raises(ValueError, match=r"query must be .* got float32 \[2, 4, 16\]"):
        pallas_kernels.decode_attention(query[:, 0], layer)
    with pytest.raises(ValueError, match=r"visible_text must be \[B, T\] = \[2, 1\].*got \[2, 3\]"):
        pallas_kernels.decode_attention(query, layer, visible_text=jnp.ones((2, 3), jnp.int32))
    one, three = (jnp.ones((2, n), jnp.int32) for n in (1, 3))
    with pytest.raises(ValueError, match=r"starts.visual\[0\] must be \[B, T\] = \[2, 1\], .* 3\]"):
        pallas_kernels.decode_attention(query, layer, starts=vkq_jax.Starts((three,), three))
    beside = r"starts: text must be .*, got int32 \[2, 3\] beside visual.0 int32 \[2, 1\]"
    with pytest.raises(ValueError, match=beside):
        pallas_kernels.decode_attention(query, layer, starts=vkq_jax.Starts((one,), three))
    with pytest.raises(ValueError, match="one entry for each of 1 visual banks, got 2"):
        pallas_kernels.decode_attention(query, layer, starts=vkq_jax.Starts((one, one), one))


@pytest.mark.parametrize("cap", [0.0, -30.0, float("inf"), float("nan")])
def test_a_soft_cap_that_is_no_finite_positive_number_is_an_error(cap):
    query, layer = random_layer(Shape(), vkq_jax.presets["none"])
    key = jnp.ones((2, 3, 2, 16))
    mask = jnp.ones((2, 1, 3), bool)
    attend = [functools.partial(f, query, layer) for f in pallas_kernels.IMPLEMENTATIONS.values()]
    attend += [functools.partial(vkq_jax.attention.post_scaled.attend_dense, query, key, key, mask)]
    for call in attend:
        with pytest.raises(ValueError, match=f"logits_soft_cap .* or None, got {cap}"):
            call(logits_soft_cap=cap)
