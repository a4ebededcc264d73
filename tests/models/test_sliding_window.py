"""Text towers whose layers see a sliding window: without a cache, from one, over several turns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.prefill import prefill
from models.text.masks import prompt_masks
from tests.support.tiny_llava import WINDOWED, batch, greedy_without_cache, prompt, tiny_model

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 1, seed=1), prompt(16, seed=2))
EVERYWHERE = dataclasses.replace(WINDOWED, text=dataclasses.replace(WINDOWED.text, full_layers=()))
CONFIGS = pytest.mark.parametrize("config", [WINDOWED, EVERYWHERE], ids=["mixed", "all layers"])


def test_what_each_layer_sees_of_a_prompt():
    inputs = batch(prompt(12), prompt(14, seed=1), side="left")
    mask_of = prompt_masks(WINDOWED.text, inputs)
    for layer in range(3):
        seen = jax.jit(mask_of)(layer)[0]
        for i in range(2, 14):
            first = 2 if layer == 1 else max(2, i - 8)
            assert np.flatnonzero(seen[i]).tolist() == list(range(first, i + 1))


@CONFIGS
@pytest.mark.parametrize("quantize_at", ["prompt", "image"])
def test_decoding_from_a_cache_is_that_of_the_forward_pass(config, quantize_at):
    """Also for prompts of unlike lengths together, by steps after which no image is seen."""
    model = tiny_model(config=config)
    options = {"quant": "none", "max_new_tokens": 12, "stop_tokens": ()}
    got = models.generate(model, batch(*ROWS, side="left"), quantize_at=quantize_at, **options)
    pixels = batch(*ROWS).pixel_values
    for i, images in enumerate([pixels[:1], pixels[1:], None]):
        inputs = dataclasses.replace(batch(ROWS[i]), pixel_values=images)
        np.testing.assert_array_equal(got.tokens[i], greedy_without_cache(model, inputs, 12))
    everything = dataclasses.replace(config.text, sliding_window=None)
    unlike = tiny_model(config=dataclasses.replace(config, text=everything))
    assert (models.generate(unlike, batch(*ROWS), **options).tokens != got.tokens).any()


@CONFIGS
def test_turns_equal_one_long_prompt(config):
    model = tiny_model(config=config)
    first, second = prompt(3, "image", 4), prompt(2, "image", 3, seed=5)
    options = {"quant": "none", "stop_tokens": ()}
    one = models.generate(model, batch(first), max_new_tokens=3, **options)
    two = models.generate(
        model, batch(second, seed=1), cache=one.cache, max_new_tokens=4, **options
    )
    pixels = jnp.concatenate([batch(first).pixel_values, batch(second, seed=1).pixel_values])
    ids = first + one.tokens[0].tolist() + second
    joined = dataclasses.replace(batch(ids), pixel_values=pixels)
    np.testing.assert_array_equal(two.tokens[0], greedy_without_cache(model, joined, 4))
    banks = [bank.index[0].tolist() for bank in two.cache.visual]
    assert banks == [list(range(3, 19)), list(range(28, 44))]


@pytest.mark.ci  # compiles four turns
def test_a_cache_goes_on_after_updates(tmp_path):
    """Positions go with their sequences, through a file and through vmap."""
    model = tiny_model(config=WINDOWED)
    quant = vkq_jax.resolve("vkq-1bit")
    _, cache = prefill(model, batch(*ROWS), quant=quant, cache_length=24)
    order = jnp.asarray([2, 0, 1])
    vkq_jax.save_cache(tmp_path / "cache.safetensors", vkq_jax.take_sequences(cache, order))
    restored = vkq_jax.load_cache(tmp_path / "cache.safetensors")
    question = batch(prompt(4, seed=5), prompt(4, seed=6), prompt(4, seed=7))
    reordered = dataclasses.replace(question, input_ids=question.input_ids[order])
    options = {"max_new_tokens": 4, "stop_tokens": ()}
    expected = models.generate(model, question, cache=cache, **options).tokens
    got = models.generate(model, reordered, cache=restored, **options).tokens
    np.testing.assert_array_equal(got, expected[order])

    def one(ids, cache):
        inputs = dataclasses.replace(question.map_tokens(lambda x: x[:1]), input_ids=ids)
        return models.generate(model, inputs, cache=cache, **options).tokens

    rows = [vkq_jax.take_sequences(cache, jnp.asarray([i])) for i in range(3)]
    mapped = jax.vmap(one)(
        question.input_ids[:, None], jax.tree.map(lambda *x: jnp.stack(x), *rows)
    )
    np.testing.assert_array_equal(mapped[:, 0], expected)


def test_a_cache_of_a_model_without_a_window_is_refused():
    _, cache = prefill(tiny_model(), batch(*ROWS), quant=vkq_jax.resolve("none"), cache_length=24)
    assert not cache.keeps_indices
    with pytest.raises(ValueError, match="needs a cache that keeps the numbers"):
        models.generate(tiny_model(config=WINDOWED), batch(*ROWS), cache=cache, max_new_tokens=1)


def test_calibration_counts_what_is_seen():
    """Layers whose window has left the image behind keep their scores as they are."""
    model = tiny_model(config=WINDOWED)
    quant = dataclasses.replace(
        vkq_jax.presets["calibquant-1bit"],
        calibration=vkq_jax.ScoreCalibration(tau1=0.0, tau2=0.01),  # narrows the least range
    )
    options = {"quant": quant, "max_new_tokens": 3}
    near = models.calibrate_scores(model, batch(prompt(3, "image", 2)), **options)
    far = models.calibrate_scores(model, batch(prompt(3, "image", 20)), **options)
    for score_map in (near, far):
        assert np.isfinite(score_map.slope).all()
        assert np.isfinite(score_map.shift).all()
    assert (near.slope < 1).all()
    assert (far.slope < 1).any(-1).tolist() == [False, True, False]
    everywhere = tiny_model(config=EVERYWHERE)
    with pytest.raises(ValueError, match="show their queries no visual tokens"):
        models.calibrate_scores(everywhere, batch(prompt(3, "image", 20)), **options)
