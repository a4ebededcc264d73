"""Arguments of a wrong kind in Python: one clear error; what stands for the right kind works."""

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
from models.inputs.arrays import inputs_from_arrays

pytestmark = pytest.mark.usefixtures("as_users_run_it")

X = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
SIGNS = vkq_jax.presets["signs-1bit"].key
WRONG = [None, 3, "text", b"bytes", [1, 2], {"a": 1}, np.ones(3), object(), SIGNS]


@pytest.fixture(scope="module")
def cache():
    return vkq_jax.empty_cache(
        quant="signs-1bit",
        batch=1,
        num_layers=1,
        num_kv_heads=1,
        head_dim=8,
        cache_length=4,
        dtype=jnp.float32,
    )


@pytest.fixture(scope="module")
def inputs():
    return inputs_from_arrays(models.read_config("tiny"), np.ones((1, 5), int))


TAKERS = {
    "dequantize": vkq_jax.dequantize,
    "dequantize tables": lambda x: x is None or vkq_jax.dequantize(CODES, x),
    "quantize": lambda x: vkq_jax.quantize(x, SIGNS),
    "quantize valid": lambda x: x is None or vkq_jax.quantize(X, SIGNS, valid=x),
    "fake_quantize": lambda x: vkq_jax.fake_quantize(x, SIGNS),
    "cosine": lambda x: vkq_jax.cosine(x, x) if not isinstance(x, np.ndarray | list | int) else x,
    "take_sequences": lambda x: vkq_jax.take_sequences(x, [0]),
    "grow": lambda x: vkq_jax.grow(x, 9),
    "append": lambda x: vkq_jax.append(x, X, X),
    "share_visual": lambda x: vkq_jax.share_visual(x, 2),
    "cache_nbytes": vkq_jax.cache_nbytes,
    "save_cache": lambda x: vkq_jax.save_cache("never", x),
    "save_score_map": lambda x: vkq_jax.save_score_map("never", x),
    "save_tables": lambda x: vkq_jax.save_tables("never", x),
    "load_cache": lambda x: isinstance(x, str | bytes) or vkq_jax.load_cache(x),
    "prepare": lambda x: models.prepare(x, prompts="question"),
    "prompts": lambda x: models.prepare(MODEL, prompts=x),
    "images": lambda x: models.prepare(MODEL, prompts="<image>", images=x),
    "input_ids": lambda x: models.prepare(MODEL, input_ids=x),
    "pixel_values": lambda x: models.prepare(MODEL, input_ids=None, pixel_values=x),
    "chat_prompt": lambda x: models.chat_prompt(x, "question"),
    "decode": lambda x: models.decode(x, [1]),
    "forward": lambda x: models.forward(x, x),
    "fingerprint": models.fingerprint,
    "attach_tables": lambda x: models.attach_tables(x, "never"),
    "pad_to_multiple": models.pad_to_multiple,
}
MODEL = models.Model(None, None, models.read_config("tiny"))  # type: ignore[arg-type]
CODES = vkq_jax.quantize(jnp.asarray(X), SIGNS)


@pytest.mark.parametrize("name", TAKERS)
def test_other_things_are_one_clear_error(tmp_path, monkeypatch, one_clear_error, name):
    monkeypatch.chdir(tmp_path)
    refused = 0
    for value in WRONG:
        try:
            TAKERS[name](value)
        except Exception as error:
            one_clear_error(error)
            refused += 1
    assert refused > 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["S1", "O", "U3", "M8[s]", "c8", "i4", "?", "V4"])
def test_arrays_of_other_things_than_floats(one_clear_error, dtype):
    with pytest.raises(ValueError, match="x") as error:
        vkq_jax.quantize(np.zeros((2, 4, 8), dtype), SIGNS)
    one_clear_error(error.value)


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


def test_traced_arrays_where_values_are_needed(tmp_path, one_clear_error, cache, inputs):
    def traced(call):
        with pytest.raises(ValueError, match="traced") as error:
            jax.jit(call)(jax.tree.map(jnp.asarray, (cache, inputs)))
        one_clear_error(error.value)

    traced(lambda given: vkq_jax.save_cache(tmp_path / "x", given[0]))
    traced(lambda given: list(models.stream(None, given[1], max_new_tokens=1)))  # type: ignore
    assert not list(tmp_path.iterdir())


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
