"""Sizes and options of a cache of one's own: a cache of these sizes, or one clear error."""

import dataclasses
import random

import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax

pytestmark = pytest.mark.usefixtures("as_users_run_it")

SIZES = {"num_layers": 2, "batch": 1, "num_kv_heads": 2, "head_dim": 8, "cache_length": 4}
BAD_SIZES = (0, -1, 2.0, "2", True, None, [2], float("nan"), 10**30, 2**31, np.float32(2), {}, 1j)
GOOD = {
    "num_layers": (np.int64(2), 3),
    "dtype": ("float16", jnp.float32, np.float32),
    "quant": ("vkq-1bit", vkq_jax.per_head("none", {0: "vkq-1bit"})),
    "text_bits": (None, 8),
    "keep_indices": (True,),
}


def bad():
    """Values by option that each are refused."""
    state = jnp.zeros((1, 1, 3))
    return {
        **dict.fromkeys(SIZES, BAD_SIZES),
        "dtype": (
            "int8",
            "float8_e4m3fn",
            "x",
            None,
            5,
            "complex64",
            bool,
            "float64",
            [],
            jnp.int32,
        ),
        "keep_indices": (1, "yes", None),
        "text_bits": (0, 4, 8.0, True, "8", [8]),
        "cross_layers": (1, "a", ["a"], [True], [1.0], [0, 0], [2], [-1], [0, 1], None, 5.0, {0}),
        "recurrent": (
            1,
            vkq_jax.RecurrentState((), ()),
            vkq_jax.RecurrentState((jnp.zeros((1, 2, 3)),), (0,)),
            vkq_jax.RecurrentState((jnp.zeros(3),), (0,)),
            vkq_jax.RecurrentState((state,), (5,)),
            vkq_jax.RecurrentState((state.astype(jnp.int32),), (0,)),
            vkq_jax.RecurrentState((state,), (0.0,)),  # type: ignore[arg-type]
            vkq_jax.RecurrentState((jnp.zeros((2, 1)),), (0, 1)),
        ),
        "other_layers": (
            1,
            (0,),
            vkq_jax.LayerSizes((), 1, 8),
            vkq_jax.LayerSizes((0, 1), 1, 8),
            vkq_jax.LayerSizes((1.0,), 1, 8),  # type: ignore[arg-type]
            vkq_jax.LayerSizes((1,), 0, 8),
            vkq_jax.LayerSizes((1,), 1, 8.0),  # type: ignore[arg-type]
        ),
        "quant": (None, 1, "x" * 500, {}, [], vkq_jax.per_layer("none", {2: "vkq-1bit"})),
    }


def test_sizes_that_cannot_be_are_refused(cases, one_clear_error):
    refused = bad()
    for case in cases(60):
        rng = random.Random(f"empty/{case}")
        options = {"quant": "none", **SIZES}
        for name in rng.sample(sorted(GOOD), 2):
            options[name] = rng.choice(GOOD[name])
        assert vkq_jax.empty_cache(**options).num_layers == options["num_layers"]
        name = rng.choice(sorted(refused))
        options[name] = rng.choice(refused[name])
        with pytest.raises((ValueError, NotImplementedError)) as caught:
            print(vkq_jax.empty_cache(**options))
        one_clear_error(caught.value)


def test_cross_attention_layers_hold_no_text(tmp_path):
    cache = vkq_jax.empty_cache(
        quant="signs-1bit",
        batch=1,
        num_layers=2,
        num_kv_heads=1,
        head_dim=8,
        cache_length=4,
        dtype=jnp.float32,
        cross_layers=(1,),
    )
    vkq_jax.save_cache(tmp_path / "whole", cache)
    text, cross = cache.parts
    filled = dataclasses.replace(cross.text, length=cross.text.length + 1)
    parts = (text, dataclasses.replace(cross, text=filled))
    with pytest.raises(ValueError, match="parts: expected text in the first and pictures in all"):
        vkq_jax.save_cache(tmp_path / "text", dataclasses.replace(cache, parts=parts))
