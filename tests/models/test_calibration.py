"""Static score calibration: made from sample prompts, used by generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from tests.support.tiny_llava import batch, prompt, tiny_model
from vkq_jax import ScoreCalibration

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 1, seed=1), prompt(6, seed=2))
QUANT = vkq_jax.presets["calibquant-1bit"]
# Widens scores instead of narrowing them: the guard has nothing to do.
UNGUARDED = dataclasses.replace(QUANT, calibration=ScoreCalibration(tau1=1.0, tau2=-1.0))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def score_map(model):
    return models.calibrate_scores(model, batch(*ROWS), max_new_tokens=3)


def test_of_one_query_it_is_the_calibration_of_that_step(model):
    inputs = batch(ROWS[1])
    own = models.calibrate_scores(model, inputs, max_new_tokens=1)
    assert own.slope.shape == own.shift.shape == (3, 4)
    assert own.quant == QUANT
    assert own.slope.dtype == own.shift.dtype == jnp.float32
    assert ((own.slope > 0) & (own.slope <= 1)).all()

    def text(**options):  # what later layers make of the token, which depends on earlier ones
        options |= {"quant": QUANT, "max_new_tokens": 1}
        return models.generate(model, inputs, **options).cache.text.value

    np.testing.assert_allclose(text(score_map=own), text(), rtol=1e-5, atol=1e-5)
    other = jax.tree.map(lambda x: 0.5 * x, own)
    assert not np.allclose(text(score_map=other), text(), rtol=1e-3, atol=1e-3)


def test_every_query_counts_once_and_padding_never(model):
    """A padded batch, its prompts one by one, and text alone, which has nothing to add."""
    options = {"quant": UNGUARDED, "quantize_at": "image", "max_new_tokens": 3}
    pixels = batch(*ROWS).pixel_values
    alone = [
        dataclasses.replace(batch(row), pixel_values=images)
        for row, images in zip(ROWS, (pixels[:1], pixels[1:], None), strict=True)
    ]
    expected = models.calibrate_scores(model, alone, **options)
    inputs = models.pad_to_multiple(batch(*ROWS, side="left"), 16)  # padding at both sides
    got = models.calibrate_scores(model, inputs, **options)
    np.testing.assert_allclose(got.slope, expected.slope, rtol=1e-4)
    np.testing.assert_allclose(got.shift, expected.shift, rtol=1e-4, atol=1e-4)


def test_the_question_counts_where_it_reads_codes(model):
    """One answered token: with a question before it there are six queries, not one."""
    inputs, options = batch(ROWS[0]), {"quant": UNGUARDED, "max_new_tokens": 1}
    at_prompt, at_image = (
        models.calibrate_scores(model, inputs, quantize_at=at, **options)
        for at in ("prompt", "image")
    )
    assert not np.allclose(at_prompt.slope, at_image.slope, rtol=1e-2)


def test_generation_keeps_the_map_and_guards_nothing(model, score_map):
    wide = dataclasses.replace(QUANT, calibration=ScoreCalibration(tau2=1e9))
    options = {"quant": wide, "max_new_tokens": 3}
    got = models.generate(model, batch(*ROWS), score_map=score_map, **options)
    assert not got.cache.calibration_skipped.any()
    np.testing.assert_array_equal(got.cache.score_map.slope, score_map.slope)
    assert models.generate(model, batch(*ROWS), **options).cache.calibration_skipped[0] > 0

    question = batch(*(prompt(2, seed=i) for i in range(3)))
    turn = models.generate(model, question, cache=got.cache, max_new_tokens=1)
    np.testing.assert_array_equal(turn.cache.score_map.slope, score_map.slope)
    other = jax.tree.map(jnp.flip, score_map)
    turn = models.generate(model, question, cache=got.cache, score_map=other, max_new_tokens=1)
    np.testing.assert_array_equal(turn.cache.score_map.slope, other.slope)


def test_layers_and_heads_without_a_calibration_keep_their_scores(model, score_map, tmp_path):
    quant = vkq_jax.per_layer(UNGUARDED, {0: "none", (1, 1): "none"})
    own = models.calibrate_scores(model, batch(*ROWS), quant=quant, max_new_tokens=1)
    kept = np.asarray([[True] * 4, [False, False, True, True], [False] * 4])
    np.testing.assert_array_equal(own.slope == 1, kept)
    np.testing.assert_array_equal(own.shift == 0, kept)
    file = tmp_path / "map.safetensors"
    vkq_jax.save_score_map(file, own)
    own = vkq_jax.load_score_map(file)
    options = {"score_map": own, "max_new_tokens": 1}
    cache = models.generate(model, batch(*ROWS), quant=quant, **options).cache
    maps = [
        (cells.layers, part.score_map.slope)
        for cells, part in zip(cache.cells, cache.parts, strict=True)
    ]
    assert [layers for layers, _ in maps] == [(0,), (1,), (1,), (2,)]
    for (layers, slope), rows in zip(
        maps, (slice(4), slice(2), slice(2, 4), slice(4)), strict=True
    ):
        np.testing.assert_array_equal(slope[0], own.slope[layers[0], rows])
    again = models.generate(model, batch(*ROWS), quant=own.quant, **options).cache
    assert again.quant == cache.quant
    for other in (quant.default, vkq_jax.per_layer(UNGUARDED, {0: "none"})):
        with pytest.raises(ValueError, match="other codes: expected its own settings of layers"):
            models.generate(model, batch(*ROWS), quant=other, **options)
    with pytest.raises(ValueError, match="other codes: expected its own settings of layers"):
        models.generate(model, batch(*ROWS), quant=quant, score_map=score_map, max_new_tokens=1)


def test_vmap_over_score_maps_and_streaming(model, score_map):
    inputs, options = batch(*ROWS[:2]), {"quant": QUANT, "max_new_tokens": 4, "stop_tokens": ()}
    maps = jax.tree.map(lambda x: jnp.stack([x, jnp.flip(x)]), score_map)

    def answer(score_map):
        return models.generate(model, inputs, score_map=score_map, **options).tokens

    one_by_one = [answer(jax.tree.map(lambda x, i=i: x[i], maps)) for i in range(2)]
    np.testing.assert_array_equal(jax.vmap(answer)(maps), jnp.stack(one_by_one))
    *_, last = models.stream(model, inputs, score_map=score_map, chunk=3, **options)
    np.testing.assert_array_equal(last.tokens, one_by_one[0])


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (batch(ROWS[0]), {"quant": "vkq-1bit"}, "no score calibration in quant='vkq-1bit'"),
        (batch(ROWS[2]), {}, "no visual tokens to calibrate"),
        ([], {}, "no visual tokens to calibrate"),
        (batch(ROWS[0]), {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (batch(ROWS[0]), {"quantize_at": "never"}, '"prompt" or "image", got \'never\''),
    ],
)
def test_bad_arguments_are_one_clear_error(model, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        models.calibrate_scores(model, inputs, **options)


def test_a_map_of_another_model_is_one_clear_error(model, score_map):
    short = jax.tree.map(lambda x: x[:2], score_map)
    message = r"score_map.slope: expected \[layers, query heads\] = \[3, 4\].*got \[2, 4\]"
    with pytest.raises(ValueError, match=message):
        models.generate(model, batch(ROWS[0]), quant=QUANT, score_map=short, max_new_tokens=1)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_map_of_other_codes_is_one_clear_error(model, score_map, goes_on):
    options = {"max_new_tokens": 1, "cache": None}
    if goes_on:
        options["cache"] = models.generate(model, batch(ROWS[0]), max_new_tokens=1).cache
    message = r"calibrated with other codes: expected key=LevelCodes.*, got key=DictionaryCodes"
    with pytest.raises(ValueError, match=message):
        models.generate(model, batch(ROWS[0]), score_map=score_map, **options)
