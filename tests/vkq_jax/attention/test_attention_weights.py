"""Weights from coded keys: what they sum up of the decoded values is attention's output."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.caches import SHAPES, oracle, random_layer, random_starts, with_score_map

WIDE = dataclasses.replace(SHAPES["two banks"], num_queries=3, text=(5, 9))
CASES = {
    "dictionary codes": ("vkq-1bit", {}),
    "level codes": ("minmax-1bit", {}),
    "sign codes, capped": ("signs-1bit", {"logits_soft_cap": 3.0, "logits_scale": 0.5}),
    "calibrated at every step": ("calibquant-1bit", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_oracle(case):
    preset, options = CASES[case]
    query, layer = random_layer(WIDE, vkq_jax.presets[preset])
    starts = random_starts(query, layer) if "dictionary" in case else None
    if case == "level codes":
        layer = with_score_map(layer, WIDE.num_heads)
    got = jax.jit(lambda q, x: vkq_jax.attention_weights(q, x, starts=starts, **options))(
        query, layer
    )
    attended = oracle(query, layer, starts=starts, **options)
    per_query_head = WIDE.num_heads // WIDE.num_kv_heads
    decode = jax.jit(vkq_jax.VisualBank.dequantize)
    values = [decode(bank, layer.tables)[1] for bank in layer.visual]
    values = jnp.repeat(jnp.concatenate([*values, layer.text.value], 2), per_query_head, axis=1)
    output = jnp.einsum("btnp,bnph->btnh", got.joined, values)
    np.testing.assert_allclose(output, attended.output, rtol=1e-4, atol=1e-4)
    seen = jnp.isfinite(attended.logsumexp)
    np.testing.assert_allclose(got.joined.sum(-1), seen.astype(jnp.float32), atol=1e-5)
    scores = jnp.concatenate([*got.visual_scores, got.text_scores], -1)
    weights = jnp.exp(scores - jnp.where(seen, attended.logsumexp, 0.0)[..., None])
    np.testing.assert_allclose(got.joined, weights, atol=1e-5)
    for bank, part, score in zip(layer.visual, got.visual, got.visual_scores, strict=True):
        padding = np.arange(part.shape[-1]) >= np.asarray(bank.length)[:, None]
        by_token = np.moveaxis(np.asarray(part), -1, 1)
        assert not by_token[padding].any()
        assert np.isneginf(np.moveaxis(np.asarray(score), -1, 1)[padding]).all()
    np.testing.assert_allclose(got.visual_mass, sum(part.sum(-1) for part in got.visual), rtol=1e-6)


def test_places_have_the_numbers_of_their_tokens():
    cache = vkq_jax.empty_cache(
        num_layers=1,
        batch=2,
        num_kv_heads=1,
        head_dim=8,
        cache_length=4,
        quant="none",
        keep_indices=True,
    )
    visual = jnp.asarray([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]], bool)
    x = jnp.ones((2, 5, 1, 8), jnp.bfloat16)

    @jax.jit
    def read(cache):
        reading = vkq_jax.begin_prefill(cache, visual, num_visual=2)
        return reading.attend(0, x, x, x)[1].finish()

    cache = read(cache)
    assert vkq_jax.token_numbers(cache).tolist() == [[1, 2, 0, 3, 4, -1], [2, -1, 0, 1, 3, 4]]
    weights = jax.jit(vkq_jax.attention_weights)(x[:, :1], cache.layer(0)).joined
    np.testing.assert_allclose(
        weights[:, 0, 0], np.asarray(vkq_jax.token_numbers(cache) >= 0) / 5, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"empty_cache\(..., keep_indices=True\)"):
        vkq_jax.token_numbers(dataclasses.replace(cache, visual=(), text=_without_numbers(cache)))


def _without_numbers(cache):
    return dataclasses.replace(cache.text, index=None)


def test_heads_that_do_not_fit_are_an_error(as_users_run_it):
    query, layer = random_layer(WIDE, vkq_jax.presets["minmax-1bit"])
    with pytest.raises(ValueError, match=r"N=multiple of 2, .* got \[2, 3, 3, 16\]"):
        vkq_jax.attention_weights(query[:, :, :3], layer)
