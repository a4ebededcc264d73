"""Text in 8 bits: what is stored, and that every operation on a cache knows it."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from tests.support.caches import SHAPES, random_layer, random_starts, relative_error
from tests.vkq_jax.passes.test_passes import (
    IS_VISUAL,
    LAYERS,
    NEXT,
    PROMPT,
    VALID,
    VISUAL,
    empty,
    run,
)
from vkq_jax.cache.text_bank import TextBank, check_text_bits

SIZES = {"num_layers": 2, "batch": 3, "num_kv_heads": 2, "head_dim": 16, "cache_length": 5}


@jax.jit
def conversation(cache):
    """A prompt, and two tokens of which the first sequence takes one."""
    reading = vkq_jax.begin_prefill(cache, IS_VISUAL, valid=VALID, num_visual=VISUAL)
    _, cache = run(PROMPT, reading)
    return run(NEXT, vkq_jax.begin_decode(cache, jnp.asarray([[True, False], [True, True]])))


@pytest.fixture(scope="module")
def filled():
    """Both kinds of cache after the same conversation, each with what the last token gave."""
    caches = {bits: empty("minmax-1bit", text_bits=bits, keep_indices=True) for bits in (None, 8)}
    return {bits: conversation(cache) for bits, cache in caches.items()}


def test_a_token_is_off_by_half_a_step_of_its_own_scale(filled):
    exact, coded = (filled[bits][1].text for bits in (None, 8))
    assert coded.key.dtype == coded.value.dtype == jnp.int8
    assert coded.key_scale.shape == coded.key.shape[:-1]
    # The first layer's text is the same in both.
    for x, code, scale in (
        (exact.key, coded.key, coded.key_scale),
        (exact.value, coded.value, coded.value_scale),
    ):
        x, code, scale = (np.asarray(part[0], np.float64) for part in (x, code, scale))
        np.testing.assert_allclose(scale, np.abs(x).max(-1) / 127, rtol=1e-6)
        assert (np.abs(x - code * scale[..., None]) <= 0.501 * scale[..., None]).all()
        assert np.abs(code).max() == 127
    chex.assert_trees_all_equal((coded.length, coded.index), (exact.length, exact.index))


def test_attention_is_near_that_of_dense_text(filled):
    (exact, _), (coded, _) = filled[None], filled[8]
    assert 1e-5 < relative_error(coded, exact) < 1e-2


@pytest.mark.parametrize(
    ("shape", "windowed", "soft_cap"),
    [("grouped queries, ragged", False, None), ("several queries", True, 5.0)],
)
def test_equals_the_oracle(shape, windowed, soft_cap):
    query, layer = random_layer(SHAPES[shape], vkq_jax.presets["signs-1bit"])
    text = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, layer.text
    ).in_8_bits()
    assert text.key_scale.dtype == text.dtype == jnp.bfloat16
    layer = dataclasses.replace(layer, text=text)
    options = {
        "starts": random_starts(query, layer) if windowed else None,
        "logits_soft_cap": soft_cap,
    }
    got, expected = (
        jax.jit(partial(attend, **options))(query, layer)
        for attend in (pallas_kernels.attend_cache, vkq_jax.attention.reference.attend_cache)
    )
    assert relative_error(got.output, expected.output) < 3e-6
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=1e-5, atol=1e-5)


def test_updates_keep_codes_and_scales_together(filled, tmp_path):
    _, cache = filled[8]
    key, value = cache.text.dequantize()
    taken = vkq_jax.take_sequences(cache, [1, 1, 0])
    grown = vkq_jax.grow(cache, 12)
    one = vkq_jax.take_sequences(cache, [0])
    shared = vkq_jax.share_visual(one, 2)
    order = jnp.asarray([1, 1, 0])
    for changed, expected in (
        (taken, (key[:, order], value[:, order])),
        (grown, [jnp.pad(x, [(0, 0)] * 3 + [(0, 3), (0, 0)]) for x in (key, value)]),
        (shared, [jnp.repeat(x[:, :1], 2, 1) for x in (key, value)]),
    ):
        assert changed.text_bits == 8
        chex.assert_trees_all_equal(changed.text.dequantize(), tuple(expected))
    vkq_jax.save_cache(tmp_path / "cache", cache)
    chex.assert_trees_all_equal(vkq_jax.load_cache(tmp_path / "cache"), cache)
    cache = vkq_jax.append(grown, *(jnp.ones((LAYERS, 2, 1, 2, 8)) for _ in range(2)))
    assert cache.text_length.tolist() == [6, 8]
    np.testing.assert_allclose(cache.text.dequantize()[0][:, 0, :, 5], 1.0, rtol=1e-6)


def test_layers_of_their_own_settings_and_vmap():
    quant = vkq_jax.per_layer("minmax-1bit", {0: "none"})
    layered = empty(quant, text_bits=8)
    assert layered.text_bits == 8
    x = jnp.ones((LAYERS, 2, 1, 2, 8)) * jnp.arange(1.0, 4.0).reshape(3, 1, 1, 1, 1)
    text = vkq_jax.append(layered, x, -x).layer(2).text
    np.testing.assert_allclose(text.dequantize()[1][:, :, 0], -3.0, rtol=1e-6)

    def mapped(scale):
        cache = vkq_jax.append(
            vkq_jax.empty_cache(**SIZES, text_bits=8), *[scale * jnp.ones((2, 3, 2, 2, 16))] * 2
        )
        return cache.text.dequantize()[0]

    got = jax.vmap(mapped)(jnp.asarray([1.0, -3.0]))
    np.testing.assert_allclose(got[:, 0, 2, 1, :3, 5], [[1, 1, 0], [-3, -3, 0]], rtol=4e-3)


def test_bytes_and_summaries():
    dense, coded = (vkq_jax.empty_cache(**SIZES, text_bits=bits) for bits in (None, 8))
    tokens = 2 * (2 * 3 * 2 * 5)
    assert vkq_jax.cache_nbytes(dense).text == tokens * 16 * 2
    assert vkq_jax.cache_nbytes(coded).text == tokens * (16 + 2)
    assert "room for 5 a sequence in 8 bits" in repr(coded)
    assert "room for 5 a sequence in bfloat16" in repr(dense)
    for lengths, shown in (([2, 2, 2], "2, room"), ([0, 3, 1], "0 to 3, room")):
        text = dataclasses.replace(dense.text, length=jnp.asarray(lengths, jnp.int32))
        assert f"{shown} for 5" in repr(dataclasses.replace(dense, text=text))
    assert coded.text.dtype == jnp.bfloat16
    assert "int8, not" not in pallas_kernels.explain(coded)
    assert "text in 8 bits" not in pallas_kernels.explain(coded)  # the kernel reads it


def test_what_is_not_finite_stays_so():
    cache = vkq_jax.empty_cache(**SIZES, text_bits=8)
    x = jnp.zeros((2, 3, 3, 2, 16)).at[0, 0, 0, 0, 3].set(jnp.nan).at[0, 0, 1, 0, 3].set(jnp.inf)
    text = vkq_jax.append(cache, x, x).text
    assert (~jnp.isfinite(text.dequantize()[0])).any(-1)[0, 0, 0].tolist() == [True] * 2 + [
        False
    ] * 3
    assert jnp.isfinite(text.dequantize()[1][:, 1:]).all()


@pytest.mark.parametrize("bits", [None, 8])
def test_writing_scatters_rows_of_channels(bits):
    """XLA would transpose the bank of all layers for a scatter of several heads' rows."""
    bank = TextBank.empty((2, 3, 4, 5, 16), jnp.float32, bits=bits)
    x = jnp.ones((3, 2, 4, 16))
    jaxpr = jax.make_jaxpr(bank.write)(1, x, x, jnp.ones((3, 2), bool))
    scatters = [each for each in jaxpr.eqns if each.primitive.name == "scatter"]
    windows = [each.params["dimension_numbers"].update_window_dims for each in scatters]
    assert windows == [(3,), (3,)] + ([(), ()] if bits else [])


@pytest.mark.parametrize("bits", [None, 8, np.int64(8)])
def test_bits_are_eight_or_none(bits):
    assert check_text_bits(bits) == bits
    assert type(check_text_bits(bits)) in (int, type(None))


@pytest.mark.parametrize("bits", [4, 16, True, "8", 8.0])
def test_other_bits_are_refused(as_users_run_it, bits):
    with pytest.raises(ValueError, match="text_bits must be 8, or None for the model's dtype, got"):
        vkq_jax.empty_cache(**SIZES, text_bits=bits)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda text: {"key_scale": None}, "int8 ones with scales of one dtype, got int8 and"),
        (lambda text: {"value": text.dequantize()[1]}, "got int8 and float32 with 2 scales"),
        (lambda text: {"value_scale": -text.value_scale}, "scales of text must be at least 0"),
        (lambda text: {"value_scale": text.value_scale[..., :-1]}, "value_scale must be"),
        (lambda text: {"key_scale": text.key_scale / 0}, "key_scale must be finite"),
    ],
)
def test_text_whose_scales_do_not_fit_is_not_written(
    filled, tmp_path, as_users_run_it, broken, message
):
    _, cache = filled[8]
    text = dataclasses.replace(cache.text, **broken(cache.text))
    with pytest.raises(ValueError, match=message) as caught:
        vkq_jax.save_cache(tmp_path / "cache", dataclasses.replace(cache, text=text))
    assert len(str(caught.value)) < 400
