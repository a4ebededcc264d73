"""The attention of a prompt's last queries, and the order of tokens that follows from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from vkq_jax.attention.last_queries import LAST_QUERIES, attention_of_last_queries
from vkq_jax.cache.visual_bank import code_bank


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_attention_of_last_queries_is_the_sum_over_rows_of_softmax(soft_cap):
    rng = np.random.default_rng(0)
    tokens, padding = LAST_QUERIES + 8, 3
    query = rng.normal(size=(2, tokens, 4, 8)).astype(np.float32)
    key = rng.normal(size=(2, tokens, 2, 8)).astype(np.float32)
    valid = np.ones((2, tokens), bool)
    valid[0, :padding] = valid[1, -padding:] = False
    mask = np.tril(np.ones((tokens, tokens), bool))[None] & valid[:, None]
    index = np.stack([np.arange(5, 15), np.arange(10)])
    found = attention_of_last_queries(
        *map(jnp.asarray, (query, key, mask, valid, index)),
        logits_scale=0.7,
        logits_soft_cap=soft_cap,
    )
    for b in range(2):
        last = np.flatnonzero(valid[b])[-LAST_QUERIES:]
        for k in range(2):
            scores = 0.7 * np.einsum("qgh,sh->gqs", query[b, last, 2 * k : 2 * k + 2], key[b, :, k])
            if soft_cap is not None:
                scores = soft_cap * np.tanh(scores / soft_cap)
            weights = np.exp(scores) * mask[b, last]
            weights /= weights.sum(-1, keepdims=True)
            expected = (weights * (1 - weights)).sum((0, 1))[index[b]]
            np.testing.assert_allclose(found[b, k], expected, rtol=1e-4, atol=1e-6)


def class_map(x, attention):
    quant = vkq_jax.presets["vkq-1bit"]
    assert quant.needs_attention
    found = code_bank(x, x, jnp.ones((1, 64), bool), quant, attention=attention).class_map
    assert found is not None
    return found


def test_tokens_that_get_attention_come_first():
    x = jax.random.normal(jax.random.key(0), (1, 1, 64, 32))
    attention = jnp.ones((1, 1, 64)).at[0, 0, ::4].set(1000.0)
    number = class_map(x, attention).classes(jnp.ones((1, 1, 64), bool))[0, 0]
    assert (number[::4] == 0).mean() > 0.9
    assert (jnp.delete(number, jnp.arange(0, 64, 4)) > 0).all()
    alike = class_map(x, jnp.full((1, 1, 64), 3.0))
    np.testing.assert_array_equal(alike.words, class_map(x, None).words)
    spoilt = class_map(x, jnp.full((1, 1, 64), jnp.nan))
    np.testing.assert_array_equal(spoilt.words, alike.words)


@pytest.mark.parametrize("name", ["signs-1bit", "none", "turboquant-2bit"])
def test_codes_without_classes_need_no_attention(name):
    assert not vkq_jax.presets[name].needs_attention


def test_classes_of_tables_go_by_what_their_settings_say():
    plans = vkq_jax.calibrated_presets["vkq-1bit"]
    assert [plan.needs_attention for plan in plans] == [False, False, True, False]


def test_keys_and_values_have_one_order():
    codes = vkq_jax.DictionaryCodes()
    with pytest.raises(ValueError, match="one order"):
        vkq_jax.KVQuantConfig(codes, dataclasses.replace(codes, order="attention"))
