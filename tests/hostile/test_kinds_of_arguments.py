"""Arguments that stand for the right kind: arrays and scalars of NumPy, lists, copies, pickles."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import models
import vkq_jax

pytestmark = pytest.mark.usefixtures("as_users_run_it")

X = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
SIGNS = vkq_jax.presets["signs-1bit"].key


def test_what_stands_for_an_array_is_one(cache):
    """NumPy's arrays of 64 bits and lists, in functions that check their arguments."""
    ids = np.asarray([[5, 7, 5]])
    for given in (ids, ids.tolist(), jnp.asarray(ids)):
        assert vkq_jax.visual_mask(given, [np.int64(5)]).tolist() == [[True, False, True]]
    with pytest.raises(ValueError, match="input_ids must lie in"):
        vkq_jax.visual_mask(ids + 2**40, 5)
    with pytest.raises(ValueError, match="visual_token_ids"):
        vkq_jax.visual_mask(ids, 2**40)
    assert vkq_jax.cosine(X.astype(np.float64), X.tolist()).shape == (2,)
    assert vkq_jax.heads_of_layer(cache, jnp.int32(0))[0][0] == (0,)
    longer = vkq_jax.append(cache, *np.ones((2, 1, 1, 2, 1, 8)), valid=[[True, False]])
    assert int(longer.text_length[0]) == 1


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f2", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_any_floats_are_coded_as_float32_is(dtype):
    values = X.astype(dtype)
    got = vkq_jax.dequantize(vkq_jax.quantize(values, SIGNS))
    expected = vkq_jax.dequantize(vkq_jax.quantize(values.astype(np.float32), SIGNS))
    np.testing.assert_array_equal(got, expected)


def test_integers_of_numpy_and_jax_are_integers(cache):
    for two in (np.int64(2), np.uint8(2), jnp.int32(2)):
        assert vkq_jax.share_visual(cache, two).position.shape == (2,)
        assert vkq_jax.grow(cache, two).cache_length == cache.cache_length
    own = vkq_jax.per_layer("none", {np.int64(2): "none", (np.uint8(1), 0): "none"})
    assert own == vkq_jax.per_layer("none", {2: "none", (1, 0): "none"})
    with pytest.raises(ValueError, match="below"):
        vkq_jax.grow(cache, 2**31)


def test_settings_of_numpys_scalars_equal_those_of_pythons():
    """A digest of settings is made of their `repr`."""
    pairs = [
        (vkq_jax.LevelCodes(bits=np.int64(2)), vkq_jax.LevelCodes(bits=2)),
        (vkq_jax.Quantile(np.float64(0.25)), vkq_jax.Quantile(0.25)),
        (
            dataclasses.replace(SIGNS, gamma=np.float64(SIGNS.gamma)),
            dataclasses.replace(SIGNS, gamma=SIGNS.gamma),
        ),
        (vkq_jax.ScoreCalibration(tau2=np.float32(2)), vkq_jax.ScoreCalibration(tau2=2.0)),
        (vkq_jax.TokenClass(np.float64(0.5), np.int8(1)), vkq_jax.TokenClass(0.5, 1)),
    ]
    for numpys, pythons in pairs:
        assert repr(numpys) == repr(pythons)
        assert numpys == pythons
        assert hash(numpys) == hash(pythons)


@pytest.mark.parametrize("name", vkq_jax.presets)
def test_settings_are_copied_and_pickled_equal(name):
    preset = vkq_jax.presets[name]
    for made in (copy.copy(preset), copy.deepcopy(preset), pickle.loads(pickle.dumps(preset))):
        assert made == preset
        assert hash(made) == hash(preset)


def test_a_cache_survives_copies_and_shows_itself_when_its_buffers_are_gone(cache):
    for made in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), jax.device_get(cache)):
        assert repr(made) == repr(cache)
        assert vkq_jax.cache_nbytes(made) == vkq_jax.cache_nbytes(cache)
    gone = jax.tree.map(jnp.copy, cache)
    jax.tree.map(lambda x: x.delete(), gone)
    assert "deleted" in repr(gone)
    assert "deleted" in gone._repr_html_()


def test_inputs_of_numpy_arrays_are_padded_as_those_of_jax(inputs):
    numpys, jaxs = (models.pad_to_multiple(x, 8) for x in (jax.device_get(inputs), inputs))
    assert numpys.prompt_shape == jaxs.prompt_shape
    for got, expected in zip(jax.tree.leaves(numpys), jax.tree.leaves(jaxs), strict=True):
        np.testing.assert_array_equal(got, expected)
