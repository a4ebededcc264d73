"""Towers with key biases that dwarf the rest of their keys, as Qwen2's are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.decode_loop import DecodeState, decode_loop
from models.generation.decode_step import decode_step
from models.generation.prefill import prefill
from models.generation.recoding import FULL_PRECISION, recode
from models.sampling import Sampling
from tests.support.tiny_llava import batch, biased_model, prompt

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 1, seed=1), prompt(9, seed=2))
QUESTION = batch(*(prompt(4, seed=i) for i in (5, 6, 7)))
OPTIONS = {"max_new_tokens": 6, "stop_tokens": ()}


@pytest.fixture(scope="module")
def model():
    return biased_model()


@pytest.fixture(scope="module")
def inputs():
    return batch(*ROWS, side="left")


def read(model, inputs, quant, cache=None):
    """Logits behind the prompts, and their cache."""
    return prefill(model, inputs, cache, quant=vkq_jax.resolve(quant), cache_length=32)


def test_keys_come_out_of_codes_as_close_as_without_a_bias(model, inputs):
    quant = "signs-1bit"
    exact = read(model, inputs, "none")[1]
    ours = read(model, inputs, quant)[1]
    settings = vkq_jax.resolve(quant)
    bank = exact.visual[0].of_layer(1)
    whole, _ = bank.dequantize()
    bias = ours.key_bias.of_layer(1)
    valid = np.asarray(jnp.arange(whole.shape[2]) < bank.length[:, None])[:, None, :, None]

    def error(keys):
        return float(jnp.square(jnp.where(valid, keys - whole, 0)).sum())

    share = bias.rotated(bank.position).transpose(0, 2, 1, 3)
    with_remedy = error(ours.visual[0].of_layer(1).dequantize()[0] + share)
    plain = vkq_jax.cache.visual_bank.code_bank(
        whole, bank.value.values, jnp.asarray(valid[:, 0, :, 0]), settings
    )
    assert with_remedy < 0.1 * error(plain.dequantize()[0])


def test_coding_later_is_coding_at_once(model, inputs):
    exact = read(model, inputs, FULL_PRECISION)[1]
    assert exact.key_bias is None
    expected = read(model, inputs, "vkq-1bit")[1]
    got = recode(model, exact, vkq_jax.resolve("vkq-1bit"))
    for mine, theirs in zip(
        got.visual[0].of_layer(1).dequantize(),
        expected.visual[0].of_layer(1).dequantize(),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_a_cache_goes_through_a_file_and_decodes(model, inputs, tmp_path):
    answer = models.generate(model, inputs, quant="vkq-1bit", **OPTIONS)
    vkq_jax.save_cache(tmp_path / "cache", answer.cache)
    restored = vkq_jax.load_cache(tmp_path / "cache")
    expected = models.generate(model, QUESTION, cache=answer.cache, **OPTIONS).tokens
    got = models.generate(model, QUESTION, cache=restored, **OPTIONS).tokens
    np.testing.assert_array_equal(got, expected)


def test_decoding_looks_shares_up_by_position(model, inputs):
    logits, cache = read(model, inputs, "vkq-1bit")
    known = cache.fixed().with_waves(cache.fixed().visual_reach())
    assert known.key_bias.waves.shape[1] == 128
    state = DecodeState.start(logits, cache)
    tokens, _, state = decode_loop(
        model, state, steps=2, sampling=Sampling(temperature=0.0), stop_tokens=()
    )
    assert state.cache.key_bias.waves is None
    step = jax.jit(decode_step)
    for i in range(2):
        logits, cache = step(model, tokens[:, i], cache)
    np.testing.assert_allclose(state.logits, logits, atol=1e-3)
    without = dataclasses.replace(cache, key_bias=None)
    other, _ = step(model, tokens[:, 0], without)
    assert jnp.abs(other - logits).max() > 0.01
