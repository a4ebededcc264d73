"""One suite for decode attention, run by every implementation against the float32 oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from tests.support.caches import (
    SHAPES,
    Shape,
    oracle,
    random_layer,
    random_starts,
    relative_error,
    with_score_map,
)
from vkq_jax import (
    Dense,
    DictionaryCodes,
    Granularity,
    KVQuantConfig,
    LevelCodes,
    Quantile,
    ScoreCalibration,
    SignCodes,
    TokenClass,
)

# Implementations that run on this machine; test_kernel*.py emulates the one that needs a GPU.
HERE = [n for n in pallas_kernels.IMPLEMENTATIONS if pallas_kernels.unavailable_reason(n) is None]
FAST = [name for name in HERE if name != "reference"]

TOKEN_LEVELS = LevelCodes(bits=2, granularity=Granularity.PER_TOKEN, group_size=8)
CHANNEL_LEVELS = LevelCodes(bits=2, range_rule=Quantile(0.05), group_size=32)
DICTIONARY = DictionaryCodes(
    (TokenClass(0.1, 3), TokenClass(0.2, 2), TokenClass(0.3, 1), TokenClass(0.4, 0))
)
LEARNED = (TokenClass(0.3, 1.5), TokenClass(0.5, 0.75), TokenClass(0.2, 0.5))
CODES = {
    **vkq_jax.presets,
    "level codes by channel and by token": KVQuantConfig(key=CHANNEL_LEVELS, value=TOKEN_LEVELS),
    "level codes by token and by channel": KVQuantConfig(key=TOKEN_LEVELS, value=CHANNEL_LEVELS),
    "sign codes in groups, score bias": KVQuantConfig(
        key=SignCodes(group_size=24, beta=0.5, gamma=0.5, scale_bits=8),
        value=SignCodes(rotation=None, gamma=0.0, group_size=24),
    ),
    "dictionary codes": KVQuantConfig(key=DICTIONARY, value=DICTIONARY),
    "dictionary codes, own centres, calibration": KVQuantConfig(
        key=dataclasses.replace(DICTIONARY, centres=3, table_dtype="float32"),
        value=dataclasses.replace(DICTIONARY, centres=5),
        calibration=ScoreCalibration(tau2=3.0),
    ),
    "dictionary codes, codebook": KVQuantConfig(
        key=dataclasses.replace(DICTIONARY, codebook=7),
        value=dataclasses.replace(DICTIONARY, codebook=16),
    ),
    "dictionary codes, learned": KVQuantConfig(
        key=DictionaryCodes(LEARNED, learned=True, codebook=4, centres=0, metric=True, scale=None),
        value=DictionaryCodes(LEARNED, learned=True, scale="norm"),
    ),
    "dense keys, 8-bit values, calibration": KVQuantConfig(
        key=Dense(), value=LevelCodes(bits=8), calibration=ScoreCalibration(tau2=3.0)
    ),
}


# Every kind of codes on a ragged cache of two banks (of codes that differ in their bits alone one,
# the others with `-m ci`); every shape with one of each kind.
OTHER_BITS = {
    "minmax-2bit",
    "minmax-8bit",
    "vkq-half",
    "vkq-2bit",
    "turboquant-2bit",
    "turboquant-3bit",
}
CASES = [
    pytest.param(codes, "two banks", None, marks=[pytest.mark.ci] * (codes in OTHER_BITS))
    for codes in CODES
]
CASES += [
    (codes, shape, None)
    for shape in SHAPES
    for codes in ("vkq-1bit", "level codes by channel and by token", "dictionary codes, codebook")
    if shape != "two banks"
]
CASES += [
    (codes, "two banks", 5.0)
    for codes in (
        "level codes by channel and by token",
        "sign codes in groups, score bias",
        "dense keys, 8-bit values, calibration",
    )
]


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize(("codes", "shape", "soft_cap"), CASES)
def test_equals_the_oracle(implementation, codes, shape, soft_cap):
    query, layer = random_layer(SHAPES[shape], CODES[codes])
    options = {"logits_soft_cap": soft_cap}
    attend = jax.jit(
        pallas_kernels.attend_cache, static_argnames=("implementation", "logits_soft_cap")
    )
    got = attend(query, layer, implementation=implementation, **options)
    expected = oracle(query, layer, **options)
    assert relative_error(got.output, expected.output) < 3e-6
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.calibration_skipped, expected.calibration_skipped)


# As above: every kind of codes on one shape, every shape with two kinds.
WINDOWED = [(codes, shape, None) for shape in SHAPES for codes in ("vkq-1bit", "calibquant-1bit")]
WINDOWED += [
    (codes, "two banks", soft_cap)
    for codes, soft_cap in (
        ("sign codes in groups, score bias", 5.0),
        ("level codes by channel and by token", None),
        ("dictionary codes, codebook", None),
        ("dictionary codes, own centres, calibration", None),
        ("dictionary codes, learned", 5.0),
    )
]
WINDOWED += [
    ("sign codes in groups, score bias", "several queries", 5.0),
    ("dictionary codes, learned", "several queries", 5.0),
]


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize(("codes", "shape", "soft_cap"), WINDOWED)
def test_a_window_equals_the_oracle(implementation, codes, shape, soft_cap):
    query, layer = random_layer(SHAPES[shape], CODES[codes])
    options = {"logits_soft_cap": soft_cap}
    fast = functools.partial(pallas_kernels.attend_cache, implementation=implementation, **options)
    starts = random_starts(query, layer)
    got = jax.jit(fast)(query, layer, starts=starts)
    expected = oracle(query, layer, starts=starts, **options)
    assert relative_error(got.output, expected.output) < 3e-6
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.calibration_skipped, expected.calibration_skipped)


def without_first(layer, sequence, visual, text):
    """One sequence of a layer of dense banks, without the first positions of each bank."""
    (bank,), row = layer.visual, slice(sequence, sequence + 1)
    key, value = (vkq_jax.DenseTensor(x.values[row, :, visual:]) for x in (bank.key, bank.value))
    key_text, value_text = (x[row, :, text:] for x in (layer.text.key, layer.text.value))
    return dataclasses.replace(
        layer,
        visual=(vkq_jax.VisualBank(key, value, bank.length[row] - visual),),
        text=vkq_jax.TextBank(key_text, value_text, layer.text.length[row] - text),
    )


@pytest.mark.parametrize("implementation", HERE)
def test_a_window_is_attention_without_what_it_hides(implementation):
    """Calibrated by the range of the scores that are left."""
    calibrated = dataclasses.replace(CODES["none"], calibration=ScoreCalibration(tau2=1.5))
    query, layer = random_layer(Shape(), calibrated)
    visual, text = (jnp.asarray(x, jnp.int32) for x in ([[50], [20]], [[2], [5]]))
    starts = vkq_jax.Starts((visual,), text)
    got = pallas_kernels.attend_cache(query, layer, starts=starts, implementation=implementation)
    for i in range(2):
        alone = without_first(layer, i, int(visual[i, 0]), int(text[i, 0]))
        expected = pallas_kernels.attend_cache(
            query[i : i + 1], alone, implementation=implementation
        )
        np.testing.assert_allclose(got.output[i], expected.output[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.logsumexp[i], expected.logsumexp[0], rtol=1e-5)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("shape", ["several queries", "two banks", "no visual bank"])
@pytest.mark.parametrize("codes", ["vkq-1bit", "calibquant-1bit"])
def test_a_static_score_map_equals_the_oracle(implementation, codes, shape):
    """Whether the codes ask for calibration at each step or not."""
    query, plain = random_layer(SHAPES[shape], CODES[codes])
    layer = with_score_map(plain, 4)
    got = pallas_kernels.attend_cache(query, layer, implementation=implementation)
    expected = oracle(query, layer)
    assert relative_error(got.output, expected.output) < 3e-6
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=1e-5, atol=1e-5)
    assert not got.calibration_skipped.any()
    without = oracle(query, plain)
    assert (relative_error(expected.output, without.output) > 0.01) == bool(plain.visual)


@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("soft_cap", [3.0, 50.0, 1e6])
def test_a_soft_cap_is_a_tanh_of_what_scores_would_be(implementation, soft_cap):
    """Score bias of coded keys included; a cap far above all scores changes nothing."""
    shape = Shape(num_heads=1, num_kv_heads=1)
    query, layer = random_layer(shape, CODES["sign codes in groups, score bias"])
    (bank,), text = layer.visual, layer.text
    error = bank.key.decoding().score_error
    attended = pallas_kernels.attend_cache(
        query, layer, implementation=implementation, logits_scale=0.2, logits_soft_cap=soft_cap
    )
    for i, q in enumerate(0.2 * query[:, 0, 0]):
        seen = [bank.length[i], text.length[i]]
        keys, values = (
            [np.asarray(x[i, 0, :n], np.float64) for x, n in zip(tensors, seen, strict=True)]
            for tensors in (
                (bank.key.dequantize(), text.key),
                (bank.value.dequantize(), text.value),
            )
        )
        logits = np.concatenate(keys) @ np.asarray(q, np.float64)
        logits[: seen[0]] -= float(q @ q) * np.asarray(error[i, 0, : seen[0]])
        if soft_cap < 1e6:
            logits = soft_cap * np.tanh(logits / soft_cap)
        weights = np.exp(logits)
        expected = weights @ np.concatenate(values) / weights.sum()
        assert relative_error(attended.output[i, 0, 0], expected) < 1e-5
        np.testing.assert_allclose(attended.logsumexp[i, 0, 0], np.log(weights.sum()), rtol=1e-5)


def test_dense_attention_with_a_soft_cap_equals_that_of_a_cache():
    query, layer = random_layer(Shape(num_queries=2, visual=()), vkq_jax.presets["none"])
    key, value = (jnp.moveaxis(x, 1, 2) for x in (layer.text.key, layer.text.value))
    seen = jnp.asarray([[1, 4], [2, 9]], jnp.int32)
    mask = jnp.arange(key.shape[1])[None, None] < seen[..., None]
    got = vkq_jax.attention.post_scaled.attend_dense(query, key, value, mask, logits_soft_cap=5.0)
    expected = oracle(query, layer, visible_text=seen, logits_soft_cap=5.0)
    assert relative_error(got.output, expected.output) < 3e-6
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", HERE)
def test_padding_is_never_seen(implementation):
    """Whatever lies behind `length`, in the text bank or in the visual one, changes nothing."""
    query, layer = random_layer(Shape(), vkq_jax.presets["signs-1bit"])
    (bank,) = layer.visual
    packed = bank.key.packed.at[1, :, 33:].set(0xFFFFFFFF)
    scales = bank.value.token_scale.at[1, :, 33:].set(250)
    other = dataclasses.replace(
        layer,
        visual=(
            dataclasses.replace(
                bank,
                key=dataclasses.replace(bank.key, packed=packed),
                value=dataclasses.replace(bank.value, token_scale=scales),
            ),
        ),
        text=dataclasses.replace(layer.text, key=layer.text.key.at[0, :, 5:].set(1e9)),
    )
    run = pallas_kernels.decode_attention
    np.testing.assert_array_equal(
        run(query, layer, implementation=implementation),
        run(query, other, implementation=implementation),
    )


@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("windowed", [False, True])
def test_a_query_that_sees_nothing_gives_zero(implementation, windowed):
    """Because there is nothing, or because a window hides all there is."""
    shape = Shape(text=(3, 3) if windowed else (0, 3), visual=((8, (8 if windowed else 0, 8)),))
    query, layer = random_layer(shape, vkq_jax.presets["quantile-1bit"])
    starts = None
    if windowed:
        starts = vkq_jax.Starts(
            (jnp.asarray([[8], [7]], jnp.int32),), jnp.asarray([[3], [1]], jnp.int32)
        )
    attended = pallas_kernels.attend_cache(
        query, layer, starts=starts, implementation=implementation
    )
    assert not attended.output[0].any()
    assert np.isneginf(attended.logsumexp[0]).all()
    assert np.isfinite(attended.output).all()
    assert attended.output[1].any()


@pytest.mark.parametrize("implementation", HERE)
def test_visible_text_limits_each_query(implementation):
    query, layer = random_layer(Shape(num_queries=2), vkq_jax.presets["none"])
    seen = jnp.asarray([[1, 4], [2, 2]], jnp.int32)
    both = pallas_kernels.attend_cache(
        query, layer, visible_text=seen, implementation=implementation
    )
    for i in range(2):
        text = dataclasses.replace(layer.text, length=seen[:, i])
        alone = pallas_kernels.attend_cache(
            query[:, i : i + 1],
            dataclasses.replace(layer, text=text),
            implementation=implementation,
        )
        np.testing.assert_allclose(both.output[:, i : i + 1], alone.output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", FAST)
def test_vmap_over_any_axis_nested_and_scanned(implementation):
    query, layer = random_layer(Shape(), vkq_jax.presets["signs-1bit"])
    queries = jnp.stack([query * factor for factor in (0.5, 1.0, 2.0)], axis=2)  # [B, T, 3, N, H]

    def run(q):
        return pallas_kernels.decode_attention(q, layer, implementation=implementation)

    one_by_one = jnp.stack([run(queries[:, :, i]) for i in range(3)])
    mapped = jax.vmap(run, in_axes=2)(queries)
    nested = jax.vmap(jax.vmap(run, in_axes=2))(jnp.stack([queries, -queries]))
    scanned = jax.lax.scan(lambda _, q: (None, run(q)), None, jnp.moveaxis(queries, 2, 0))[1]
    for got in (mapped, nested[0], scanned):
        assert relative_error(got, one_by_one) < 3e-6


@pytest.mark.parametrize("implementation", FAST)
def test_vmap_over_caches(implementation):
    pairs = [random_layer(Shape(), vkq_jax.presets["kivi-2bit"], seed) for seed in range(3)]
    query, layer = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)

    def run(q, c):
        return pallas_kernels.decode_attention(q, c, implementation=implementation)

    got = jax.vmap(run)(query, layer)
    expected = jnp.stack([run(q, c) for q, c in pairs])
    assert relative_error(got, expected) < 3e-6


@pytest.mark.parametrize("implementation", FAST)
def test_vmap_over_score_maps(implementation):
    query, layer = random_layer(Shape(num_queries=2), vkq_jax.presets["calibquant-1bit"])
    layers = [with_score_map(layer, 4), with_score_map(layer, 4)]
    layers[1] = dataclasses.replace(layer, score_map=jax.tree.map(jnp.flip, layers[0].score_map))

    def run(score_map):
        mapped = dataclasses.replace(layer, score_map=score_map)
        return pallas_kernels.decode_attention(query, mapped, implementation=implementation)

    maps = jax.tree.map(lambda *x: jnp.stack(x), *(x.score_map for x in layers))
    expected = jnp.stack([run(x.score_map) for x in layers])
    assert relative_error(jax.vmap(run)(maps), expected) < 3e-6


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_gradients_equal_the_oracles(implementation, soft_cap):
    """With respect to queries and to dense keys and values."""
    query, layer = random_layer(Shape(num_queries=2), vkq_jax.presets["vkq-1bit"])

    def loss(query, text_key, text_value, attend):
        text = dataclasses.replace(layer.text, key=text_key, value=text_value)
        changed = dataclasses.replace(layer, text=text)
        return jnp.sum(jnp.sin(attend(query, changed, logits_soft_cap=soft_cap).output))

    fast = functools.partial(pallas_kernels.attend_cache, implementation=implementation)
    grad = jax.grad(loss, argnums=(0, 1, 2))
    arguments = (query, layer.text.key, layer.text.value)
    got = grad(*arguments, fast)
    expected = grad(*arguments, vkq_jax.attention.reference.attend_cache)
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < 1e-5
