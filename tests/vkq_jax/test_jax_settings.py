"""The core works whatever JAX is set to; promotion is strict in all tests of this folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.caches import Shape, random_layer
from vkq_jax.attention import reference
from vkq_jax.attention.post_scaled import attend_cache
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank

SETTINGS = {
    "tracer leaks": jax.checking_leaks,
    "x64": lambda: jax.enable_x64(True),
    "debug_nans": lambda: jax.debug_nans(True),
}
SHAPE = Shape(visual=((12, (12, 0)),), cache_length=4, text=(2, 4), head_dim=8)


def everything(preset, path):
    """Codes, gradients, attention, updates and files of a small cache; arrays to compare."""
    quant = vkq_jax.presets[preset]
    query, layer = random_layer(SHAPE, quant)
    (bank,) = layer.visual
    stacked = jax.tree.map(lambda x: x[None], (bank.key, bank.value, bank.class_map))
    position = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32)[None], (2, 12))
    cache = KVCache(
        (VisualBank(*stacked[:2], bank.length, position, stacked[2]),),
        TextBank(layer.text.key[None], layer.text.value[None], layer.text.length, position[:, :4]),
        position=jnp.asarray([14, 15], jnp.int32),
        calibration_skipped=jnp.zeros(2, jnp.int32),
        quant=quant,
        tables=jax.tree.map(lambda x: x[None], layer.tables),
    )
    vkq_jax.save_cache(path, cache)
    cache = vkq_jax.take_sequences(vkq_jax.load_cache(path), [True, True])
    cache = vkq_jax.append(vkq_jax.grow(cache, 6), query[None, :, :, :2], query[None, :, :, 2:])
    starts = vkq_jax.window_starts(cache, cache.position[:, None] - 1, 5)
    got = attend_cache(query, cache.layer(0), starts=starts, logits_soft_cap=30.0)
    oracle = reference.attend_cache(query, cache.layer(0), starts=starts, logits_soft_cap=30.0)
    gradient = jax.grad(lambda x: vkq_jax.fake_quantize(x, quant.key).sum())(query)
    return got, oracle, gradient


@pytest.mark.parametrize(
    ("name", "preset"),
    [("x64", "vkq-1bit"), ("debug_nans", "vkq-1bit"), ("tracer leaks", "kivi-2bit")],
)
@pytest.mark.ci
def test_fast_path_and_oracle_agree(tmp_path, name, preset):
    with SETTINGS[name]():
        got, oracle, gradient = everything(preset, tmp_path / "cache")
    assert got.output.dtype == got.logsumexp.dtype == jnp.float32
    assert got.calibration_skipped.dtype == jnp.int32
    np.testing.assert_allclose(got.output, oracle.output, atol=1e-5)
    np.testing.assert_array_equal(gradient, jnp.ones_like(gradient))
