"""Attention over a cache against a float64 oracle in NumPy, by class of queries and caches.

The oracle knows nothing of codes: it takes the dequantized keys and values, so that what is judged
is masks, softmax, score maps, soft-caps and post-scaling.
"""

import dataclasses
import random

import jax.numpy as jnp
import numpy as np

import vkq_jax
from tests.support.caches import Shape, attend, random_layer, random_starts, with_score_map
from vkq_jax.attention.post_scaled import attend_dense, merge

PRESETS = ["vkq-1bit", "signs-1bit", "calibquant-1bit", "kivi-2bit", "none"]
SHAPES = [
    Shape(visual=((20, (20, 7)),)),
    Shape(num_queries=3, visual=((20, (0, 20)), (9, (9, 1)))),
    Shape(num_heads=2, visual=()),
    Shape(num_heads=2, text=(0, 0), visual=((20, (20, 0)),)),
    Shape(visual=((0, (0, 0)),)),
]
QUERIES = {"normal": 1.0, "zeros": 0.0, "sharp": 100.0, "huge": 1e15, "small": 1e-30}


def exact(query, layer, starts, scale, cap):
    """Output and log-sum-exp [B, T, N, ...] in float64, and which queries see anything."""
    wide = np.asarray(query, np.float64)
    batch, num_queries, num_heads, head_dim = wide.shape
    output = np.zeros(wide.shape)
    logsumexp = np.full(wide.shape[:-1], -np.inf)
    banks = [
        (*(np.asarray(x, np.float64) for x in bank.dequantize(layer.tables)), bank.length)
        for bank in layer.visual
    ]
    text_key, text_value = (np.asarray(x, np.float64) for x in (layer.text.key, layer.text.value))
    per_kv_head = num_heads // text_key.shape[1]
    for b, t, n in np.ndindex(batch, num_queries, num_heads):
        q, head = wide[b, t, n] * scale, n // per_kv_head
        scores, values = [], []
        for number, (key, value, length) in enumerate(banks):
            start = 0 if starts is None else int(starts.visual[number][b, t])
            seen = slice(start, int(length[b]))
            scores.append(capped(key[b, head, seen] @ q, cap))
            values.append(value[b, head, seen])
        visual = np.concatenate([np.zeros(0), *scores])
        if layer.score_map is not None:
            visual = float(layer.score_map.slope[n]) * visual + float(layer.score_map.shift[n])
        elif layer.quant.calibration is not None:
            visual = calibrated(visual, layer.quant.calibration)
        start = 0 if starts is None else int(starts.text[b, t])
        seen = slice(start, max(0, int(layer.text.length[b]) - num_queries + t + 1))
        text = capped(text_key[b, head, seen] @ q, cap)
        logits = np.concatenate([visual, text])
        if not logits.size:
            continue
        value = np.concatenate([np.zeros((0, head_dim)), *values, text_value[b, head, seen]])
        weights = np.exp(logits - logits.max())
        output[b, t, n] = weights @ value / weights.sum()
        logsumexp[b, t, n] = logits.max() + np.log(weights.sum())
    return output, logsumexp


def capped(scores, cap):
    return scores if cap is None else cap * np.tanh(scores / cap)


def calibrated(scores, settings):
    """[gamma, delta] to [gamma - tau1, delta - tau2], unless that would reverse the order."""
    if not scores.size or np.ptp(scores) <= max(settings.tau2 - settings.tau1, 0):
        return scores
    ends = [scores.min(), scores.max()]
    return np.interp(scores, ends, [ends[0] - settings.tau1, ends[1] - settings.tau2])


def random_case(rng):
    """A query, a layer and the options of attention."""
    shape, quant = rng.choice(SHAPES), vkq_jax.presets[rng.choice(PRESETS)]
    query, layer = random_layer(shape, quant, rng.randrange(3))
    kind = rng.choice(sorted(QUERIES))
    query = query * jnp.float32(QUERIES[kind])
    if rng.random() < 0.3:
        layer = with_score_map(layer, shape.num_heads)
    starts = random_starts(query, layer, rng.randrange(5)) if rng.random() < 0.5 else None
    scale, cap = rng.choice([None, 0.1]), rng.choice([None, None, 5.0])
    return kind, query, layer, starts, scale, cap


def test_attention_is_that_of_float64(cases):
    for case in cases(3):
        rng = random.Random(f"attention/{case}")
        kind, query, layer, starts, scale, cap = random_case(rng)
        got = attend(query, layer, starts=starts, logits_scale=scale, logits_soft_cap=cap)
        used = query.shape[-1] ** -0.5 if scale is None else scale
        output, logsumexp = exact(query, layer, starts, used, cap)
        message = f"case {case}, {kind}, {layer.quant}"
        assert np.isfinite(np.asarray(got.output)).all(), message
        seen = np.isfinite(logsumexp)
        np.testing.assert_array_equal(np.isfinite(np.asarray(got.logsumexp)), seen, message)
        assert (np.asarray(got.output)[~seen] == 0).all(), message
        # A score carries a relative error of 2^-20 or so: weights of huge scores one of exp(that).
        largest = np.abs(logsumexp[seen]).max(initial=1.0)
        np.testing.assert_allclose(
            np.asarray(got.logsumexp)[seen], logsumexp[seen], atol=1e-5 * largest, err_msg=message
        )
        if largest < 1e3:
            spread = np.abs(output).max(initial=1.0)
            atol = 1e-5 * largest * spread
            np.testing.assert_allclose(np.asarray(got.output), output, atol=atol, err_msg=message)


def test_a_nan_reaches_the_queries_that_read_it_and_no_other(cases):
    for case in cases(3):
        rng = random.Random(f"nan/{case}")
        quant = vkq_jax.presets[rng.choice(PRESETS)]
        query, layer = random_layer(SHAPES[0], quant, rng.randrange(3))
        row, head = rng.randrange(2), rng.randrange(2)
        side = rng.choice(["key", "value"])
        bad = getattr(layer.text, side).at[row, head, 0, 3].set(jnp.nan)
        spoilt = dataclasses.replace(layer, text=dataclasses.replace(layer.text, **{side: bad}))
        got, clean = (
            np.asarray(attend(query, spoilt).output),
            np.asarray(attend(query, layer).output),
        )
        reached = np.zeros(got.shape[:-1], bool)
        reached[row, :, 2 * head : 2 * head + 2] = True
        assert np.isnan(got[reached]).any(-1).all(), case
        np.testing.assert_array_equal(got[~reached], clean[~reached], f"case {case}")


def test_merging_parts_is_attention_over_all(cases):
    """Any split of dense positions, either part empty for some queries."""
    for case in cases(3):
        rng = np.random.default_rng(case)
        query = jnp.asarray(rng.normal(size=(2, 3, 4, 8)) * rng.choice([1, 50]), jnp.float32)
        key, value = (jnp.asarray(rng.normal(size=(2, 10, 2, 8)), jnp.float32) for _ in "kv")
        mask = rng.random((2, 3, 10)) < 0.6
        mask[0, 0] = False
        stop = np.arange(10)[None, None] < rng.integers(0, 11, (2, 1, 1))
        parts = [attend_dense(query, key, value, jnp.asarray(mask & x)) for x in (stop, ~stop)]
        merged = merge(*parts)
        whole = attend_dense(query, key, value, jnp.asarray(mask))
        # A rounded log-sum-exp of x makes a relative error of x * 2^-24 in each part's weight.
        largest = np.abs(whole.logsumexp).max(where=np.isfinite(whole.logsumexp), initial=1.0)
        allowed = 2**-22 * largest * np.abs(value).max()
        np.testing.assert_allclose(merged.output, whole.output, rtol=0, atol=allowed)
        np.testing.assert_allclose(merged.logsumexp, whole.logsumexp, rtol=2**-22, atol=2**-22)
