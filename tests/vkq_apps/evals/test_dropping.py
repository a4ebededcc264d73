"""Token dropping, on a model of a few thousand random parameters."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.generation.prefill import prefill
from models.generation.recoding import FULL_PRECISION
from models.generation.teacher_forcing import EvaluatedModel
from models.inputs.split import split_after_images
from tests.support.tiny_llava import VISUAL_TOKENS, WINDOWED, batch, prompt, tiny_model
from vkq_apps.evals.cache_size import cache_size
from vkq_apps.evals.dropping import attention_mass, keep_tokens, read_kept
from vkq_apps.evals.settings import preset_names, settings_of
from vkq_jax import presets

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 4, seed=1))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def parts():
    return split_after_images(batch(*ROWS))


@pytest.fixture(scope="module")
def reading(model, parts):
    owner = jnp.arange(2, dtype=jnp.int32)
    return EvaluatedModel(model).read(*parts, owner, cache_length=16)


def test_keeping_all_tokens_in_another_order_changes_nothing(model, parts, reading):
    kept = read_kept(EvaluatedModel(model), reading, parts[0], share=1 - 1e-9)
    np.testing.assert_allclose(kept.logits, reading.prompted.logits, atol=2e-5)


def test_attention_mass_is_that_of_the_visual_tokens(model, parts):
    mass = np.asarray(*attention_mass(model, parts[0]))
    layers, heads = model.config.text.num_hidden_layers, model.config.text.num_key_value_heads
    assert mass.shape == (layers, 2, heads, 2 * VISUAL_TOKENS)
    assert (mass[:, 0, :, VISUAL_TOKENS:] == 0).all()
    assert (mass[:, 1] > 0).all()
    # Each query gives a mass of 1, to text as well; the text before the image gives it none.
    queries = [VISUAL_TOKENS, 2 * VISUAL_TOKENS]
    per_head = model.config.text.num_attention_heads // heads
    for row, most in enumerate(queries):
        assert (mass[:, row].sum(-1) < per_head * most).all()
        # The first visual token is seen by all queries from there on, the last one by itself.
        assert (mass[:, row, :, 0] > mass[:, row, :, most - 1]).mean() > 0.5


def test_the_tokens_of_most_attention_are_kept(reading):
    shape = (3, 2, 2, 2 * VISUAL_TOKENS)
    mass = jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)
    kept = keep_tokens(reading.pictures, [mass], 0.25)
    (before,), (after,) = reading.pictures.visual, kept.visual
    assert after.length.tolist() == [VISUAL_TOKENS // 4, 2 * VISUAL_TOKENS // 4]
    for row, valid in enumerate((VISUAL_TOKENS, 2 * VISUAL_TOKENS)):
        order = np.argsort(-np.asarray(mass)[1, row, 0, :valid])[: valid // 4]
        for bank, few in ((before.key, after.key), (before.value, after.value)):
            np.testing.assert_array_equal(
                few.values[1, row, 0, : valid // 4], bank.values[1, row, 0, order]
            )


def test_bytes_count_against_all_elements(reading):
    mass = jnp.ones((3, 2, 2, 2 * VISUAL_TOKENS))
    size = cache_size(keep_tokens(reading.pictures, [mass], 0.25), reading.pictures)
    assert size.key_bytes == size.value_bytes == size.full_bytes / 8
    assert 8 * size.key_bytes / size.elements == 0.25 * 32  # float32


def test_a_sliding_window_that_hides_tokens_is_refused():
    model = tiny_model(config=WINDOWED)
    images, _ = split_after_images(batch(*ROWS))
    _, cache = prefill(model, images, quant=FULL_PRECISION, cache_length=8)
    mass, slots = jnp.ones((3, 2, 2, 2 * VISUAL_TOKENS)), 2 * VISUAL_TOKENS + 8
    with pytest.raises(NotImplementedError, match=f"shows all of the {slots} slots"):
        keep_tokens(cache, [mass], 0.5, window=slots - 1)


def test_a_sliding_window_that_shows_all_tokens_changes_nothing(model, parts, reading):
    text = dataclasses.replace(WINDOWED.text, sliding_window=2 * VISUAL_TOKENS + 16)
    windowed = tiny_model(config=dataclasses.replace(WINDOWED, text=text))
    same = EvaluatedModel(windowed).read(*parts, reading.owner, cache_length=16)
    kept = read_kept(EvaluatedModel(windowed), same, parts[0], share=0.25)
    expected = read_kept(EvaluatedModel(model), reading, parts[0], share=0.25)
    assert kept.cache.keeps_indices
    np.testing.assert_allclose(kept.logits, expected.logits, atol=2e-5)


def test_settings_keep_a_share_or_take_the_plain_preset(model):
    names = preset_names("keep-7%, none,vkq-1bit:plain,keep-4.5%,keep-7%,none:text8,vkq-1bit:text8")
    assert names == ["keep-7%", "vkq-1bit:plain", "keep-4.5%", "none:text8", "vkq-1bit:text8"]
    full, seven, plain, four, *text = settings_of(model, names)
    assert [(one.text_bits, one.quant == presets["none"], one.exact) for one in text] == [
        (8, True, False),
        (8, False, False),
    ]
    with pytest.raises(ValueError, match="keep-7% keeps text as it is, expected no :text8"):
        preset_names("keep-7%:text8")
    assert full.exact
    assert [one.exact for one in (seven, plain, four)] == [False, False, False]
    assert (seven.kept, four.kept, plain.kept) == (0.07, 0.045, None)
    for name in ("keep-0%", "keep-100%"):
        with pytest.raises(ValueError, match=f"more than 0 % and less than 100 %, got '{name}'"):
            preset_names(name)
    with pytest.raises(ValueError, match="unknown preset 'keep-x%'"):
        preset_names("keep-x%")
