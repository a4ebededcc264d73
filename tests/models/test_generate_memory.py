"""Which buffers generation holds, gives away and shares, and what XLA is told for that."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.decode_loop import DecodeState, decode_loop, emit_tokens_in_place
from models.generation.gpu_options import gpu_options
from models.generation.prefill import prefill
from models.generation.token_chooser import TokenChooser
from models.sampling import Sampling
from tests.support.caches import deleted
from tests.support.tiny_llava import batch, prompt, tiny_model
from vkq_jax.attention.last_queries import LAST_QUERIES

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 1, seed=1), prompt(6, seed=2))
FOUR = {"max_new_tokens": 4, "stop_tokens": ()}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_decoding_in_place_consumes_all_but_visual_banks_and_key(model):
    def decode(**options):
        logits, cache = prefill(
            model, batch(*ROWS), quant=vkq_jax.resolve("signs-1bit"), cache_length=16
        )
        state = DecodeState.start(logits, cache, jax.random.key(0))
        sampling = Sampling(temperature=1.0)
        return state, decode_loop(
            model, state, steps=4, sampling=sampling, stop_tokens=(), **options
        )

    (kept, expected), (consumed, got) = decode(), decode(consume=True)
    assert not any(deleted((kept, got)))
    assert not any(deleted((consumed.cache.visual, consumed.key)))
    rest = dataclasses.replace(consumed.cache, visual=())
    assert all(deleted((consumed.logits, rest, consumed.done)))
    np.testing.assert_array_equal(got[0], expected[0])


def test_options_for_gpus_change_no_token_and_no_outer_jit(model, monkeypatch):
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(jax, "default_backend", lambda: "gpu")
        options = gpu_options(None, 2)
    assert options
    monkeypatch.setattr("models.generation.decode_loop.gpu_options", lambda mesh, batch: options)
    logits, cache = prefill(
        model, batch(*ROWS), quant=vkq_jax.resolve("signs-1bit"), cache_length=16
    )
    state = DecodeState.start(logits, cache)

    def decode(**consumed):
        return decode_loop(model, state, steps=2, sampling=Sampling(), stop_tokens=(), **consumed)[
            0
        ]

    within = jax.jit(decode)()  # where JAX takes no options
    np.testing.assert_array_equal(decode(consume=True), within)


def test_two_devices_add_what_they_send_each_other(monkeypatch):
    """More devices sum as XLA does, and several hosts take none of its graphs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    alone = gpu_options(None, 8)
    one, two, four = (
        gpu_options(SimpleNamespace(shape={"data": 2, "kv_heads": heads, "group": group}), 8)
        for heads, group in ((1, 1), (1, 2), (2, 2))
    )
    assert set(two) - set(one) == {"xla_gpu_unsupported_enable_all_reduce_decomposer"}
    assert one == four
    assert set(one) > set(alone)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert gpu_options(SimpleNamespace(shape={"data": 1}), 8) == alone


def test_products_of_many_sequences_are_not_merged(monkeypatch):
    """Those of each device count."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mesh = SimpleNamespace(shape={"data": 4, "kv_heads": 1, "group": 1})
    name = "xla_gpu_dot_merger_threshold_mb"
    found = [name in gpu_options(*of) for of in ((None, 64), (None, 256), (mesh, 256))]
    assert found == [True, False, True]


def test_the_text_bank_does_not_exist_twice(model):
    logits, cache = prefill(model, batch(*ROWS), quant=vkq_jax.resolve("none"), cache_length=64)
    state = DecodeState.start(logits, dataclasses.replace(cache, visual=()))
    compiled = emit_tokens_in_place.lower(
        model, cache.fixed(), None, state, TokenChooser.create(Sampling(), ()), 4,
        steps=4, pad=0, implementation=None,
    ).compile()  # fmt: skip
    text = cache.text.key.nbytes + cache.text.value.nbytes
    assert compiled.memory_analysis().alias_size_in_bytes >= text


def test_a_cache_can_be_gone_on_from_more_than_once(model):
    one = models.generate(model, batch(ROWS[0]), quant="signs-1bit", **FOUR)
    length = one.cache.text.cache_length + 8

    def turn(**options):
        question = batch(prompt(2, seed=3))
        return models.generate(model, question, cache=one.cache, **FOUR, **options).tokens

    first = turn(cache_length=length)
    np.testing.assert_array_equal(turn(), first)
    assert not any(deleted(one))
    # A cache with room enough is not copied to grow.
    roomy = models.generate(model, batch(ROWS[0]), quant="signs-1bit", cache_length=length, **FOUR)
    for _ in range(2):
        models.generate(model, batch(prompt(2)), cache=roomy.cache, **FOUR)
    assert not any(deleted(roomy))


def test_prefill_with_codes_needs_less_memory_than_without(model):
    """The full-precision visual cache of more than one layer never exists."""
    inputs = batch(prompt(2, *["image"] * 8, 2))

    def bytes_of(quant):
        compiled = prefill.lower(
            model, inputs, quant=vkq_jax.resolve(quant), cache_length=8
        ).compile()
        analysis = compiled.memory_analysis()
        return analysis.temp_size_in_bytes, analysis.output_size_in_bytes

    text = model.config.text
    layer = (
        2 * 8 * 16 * text.num_key_value_heads * text.head_dim * 4
    )  # K and V of one layer, float32
    temp_coded, out_coded = bytes_of("vkq-1bit")
    temp_exact, out_exact = bytes_of("none")
    assert out_exact - out_coded > 0.9 * text.num_hidden_layers * layer
    # Work space of coding, one layer at a time: float32 copies of its tokens in two orders, and the
    # weights of the last queries, which heads of 8 channels make as large as this cache.
    queries = min(LAST_QUERIES, inputs.mask.shape[1])
    paid = queries * text.num_attention_heads * inputs.mask.shape[1] * 4
    assert temp_coded - temp_exact < 3 * layer + paid
    assert temp_coded + out_coded < temp_exact + out_exact + paid
