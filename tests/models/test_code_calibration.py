"""Tables of codes: made from sample prompts, kept with the model, taken by generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models import model_fingerprint as fingerprints
from models.calibration import codes as code_calibration
from models.calibration import fitting
from tests.support.tiny_llava import WINDOWED, batch, prompt, tiny_model
from vkq_jax import DictionaryCodes, KVQuantConfig, TokenClass

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 3, seed=1))
SHARES = (0.3, 0.5, 0.2)


def plan(*planes: float, **settings) -> DictionaryCodes:
    classes = tuple(TokenClass(*c) for c in zip(SHARES, planes, strict=True))
    return DictionaryCodes(classes, codebook=16, **settings)


PLANS = (
    KVQuantConfig(plan(2, 1, 0), plan(2, 1, 0)),
    KVQuantConfig(
        plan(2, 2, 2, learned=True, centres=0, metric=True, scale=None),
        plan(2, 2, 2, learned=True, centres=0, scale="norm"),
    ),
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def calibrated(model):
    """Calibrated codes of two plans, of which the second has more bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_calibration, "calibrated_presets", {"vkq-1bit": PLANS})
        told, weights, fit = {}, [], fitting.fit_codebook
        patch.setattr(
            fitting, "fit_codebook", lambda x, w, *rest: weights.append(w) or fit(x, w, *rest)
        )
        codes = models.calibrate_codes(
            model,
            [batch(*ROWS), batch(*ROWS, seed=1)],
            max_new_tokens=3,
            tokens=64,
            on_preset=lambda name, divergence: told.update({name: list(divergence)}),
        )
    assert all(bool((w > 0.2 * w.mean(-1, keepdims=True)).all()) for w in weights)  # a floor
    assert len(weights) > 0
    assert len(told["vkq-1bit"]) == 2
    assert codes.presets[0].quant == PLANS[int(np.argmin(told["vkq-1bit"]))]
    return codes


def test_the_plan_that_diverges_least_is_taken(calibrated):
    assert calibrated.names == ("vkq-1bit",)
    assert calibrated.presets[0].quant == PLANS[1]
    assert calibrated.presets[0].tables.nbytes > 0


@pytest.mark.parametrize("quantize_at", ["prompt", "image"])
def test_a_presets_name_stands_for_what_calibration_made_of_it(model, calibrated, quantize_at):
    inputs, options = batch(*ROWS), {"max_new_tokens": 3, "quantize_at": quantize_at}
    got = models.generate(model, inputs, tables=calibrated, **options)
    assert got.cache.quant == PLANS[1]
    assert got.cache.tables is not None
    own = models.generate(model, inputs, quant=PLANS[1], tables=calibrated, **options)
    np.testing.assert_array_equal(got.tokens, own.tokens)
    plain = models.generate(model, inputs, **options)
    assert plain.cache.quant == vkq_jax.presets["vkq-1bit"]
    assert plain.cache.tables is None


def test_files_of_tables_serve_like_the_tables(model, calibrated, tmp_path):
    file = tmp_path / "tables.safetensors"
    vkq_jax.save_tables(file, calibrated)
    loaded = vkq_jax.load_tables(file)
    assert loaded.model == calibrated.model == models.fingerprint(model)
    jax.tree.map(np.testing.assert_array_equal, loaded, calibrated)
    inputs = batch(*ROWS)
    expected = models.generate(model, inputs, tables=calibrated, max_new_tokens=2)
    attached = models.attach_tables(model, file)
    for source, options in ((model, {"tables": file}), (attached, {})):
        got = models.generate(source, inputs, max_new_tokens=2, **options)
        np.testing.assert_array_equal(got.cache.text.value, expected.cache.text.value)


def test_tables_of_another_model_are_refused(calibrated, tmp_path):
    other, file = tiny_model(seed=1), tmp_path / "tables.safetensors"
    vkq_jax.save_tables(file, calibrated)
    with pytest.raises(ValueError, match="made for another model: expected fingerprint") as caught:
        models.generate(other, batch(*ROWS), tables=calibrated, max_new_tokens=1)
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match=r"tables\.safetensors: the tables were made for another"):
        models.attach_tables(other, file)


def test_presets_that_tables_lack_are_refused(model, calibrated):
    with pytest.raises(ValueError, match="expected a calibrated preset 'kivi-2bit', got vkq-1bit"):
        models.generate(model, batch(*ROWS), quant="kivi-2bit", tables=calibrated, max_new_tokens=1)
    with pytest.raises(ValueError, match="need tables of the model"):
        models.generate(model, batch(*ROWS), quant=PLANS[0], max_new_tokens=1)
    with pytest.raises(ValueError, match="CalibratedCodes or the path of a file, got 3"):
        models.generate(model, batch(*ROWS), tables=3, max_new_tokens=1)


@pytest.mark.ci  # compiles four turns
def test_a_conversation_keeps_its_tables(model, calibrated, tmp_path):
    """A later turn with an image, sequences in another order, and a file in between."""
    first = models.generate(model, batch(*ROWS), tables=calibrated, max_new_tokens=2)
    vkq_jax.save_cache(tmp_path / "cache", first.cache)
    restored = vkq_jax.load_cache(tmp_path / "cache")
    turn = batch(prompt(2, "image", 2, seed=3), prompt(4, seed=4))
    options = {"max_new_tokens": 3}
    expected = models.generate(model, turn, cache=first.cache, **options)
    got = models.generate(model, turn, cache=restored, **options)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert len(got.cache.visual) == 2
    back = batch(prompt(4, seed=4), prompt(2, "image", 2, seed=3))
    swapped = vkq_jax.take_sequences(first.cache, jnp.asarray([1, 0]))
    other = models.generate(model, back, cache=swapped, **options)
    np.testing.assert_array_equal(other.tokens, np.asarray(expected.tokens)[::-1])


@pytest.mark.ci  # compiles a batch of generations
def test_vmap_over_images(model, calibrated):
    rows = [batch(ROWS[0], seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)

    def answer(inputs):
        return models.generate(model, inputs, tables=calibrated, max_new_tokens=2).cache.text.value

    got = jax.vmap(answer)(stacked)
    for one, inputs in zip(got, rows, strict=True):
        np.testing.assert_allclose(one, answer(inputs), rtol=1e-4, atol=1e-4)


def test_jit_with_the_model_as_an_argument(model, calibrated):
    @jax.jit
    def answer(model, inputs):
        return models.generate(model, inputs, tables=calibrated, max_new_tokens=2).tokens

    expected = models.generate(model, batch(*ROWS), tables=calibrated, max_new_tokens=2).tokens
    np.testing.assert_array_equal(answer(model, batch(*ROWS)), expected)


@pytest.mark.ci  # and `test_a_window_equals_the_oracle` without a model
def test_a_sliding_window_hides_positions_whatever_their_slots():
    """Slots are in the order of classes; the oracle decodes them to the order of positions."""
    model, inputs = tiny_model(config=WINDOWED), batch(*ROWS)
    options = {"max_new_tokens": 4, "quantize_at": "image"}
    fast, oracle = (
        models.generate(model, inputs, implementation=name, **options)
        for name in ("xla", "reference")
    )
    np.testing.assert_array_equal(fast.tokens, oracle.tokens)
    np.testing.assert_allclose(fast.cache.text.value, oracle.cache.text.value, rtol=1e-4, atol=1e-4)


def test_prompts_that_cannot_calibrate_are_refused(model):
    for inputs, message in (
        ([], "no sample prompts"),
        ([batch(prompt(5))], "needs an image"),
        ([batch(prompt(3, "image"))], "a question behind the image"),
    ):
        with pytest.raises(ValueError, match=message):
            models.calibrate_codes(model, inputs)
    with pytest.raises(ValueError, match=r"expected some of vkq-1bit, .*got 'none'"):
        models.calibrate_codes(model, [], presets=["none"])
    with pytest.raises(ValueError, match=r"expected some of vkq-1bit, .*got none"):
        models.calibrate_codes(model, [], presets=[])


def test_the_fingerprint_does_not_depend_on_how_weights_are_kept(model):
    assert models.fingerprint(tiny_model().unstack_layers()) == models.fingerprint(model)
    assert models.fingerprint(tiny_model(dtype=jnp.bfloat16)) == models.fingerprint(model)


def test_every_weight_counts_in_the_fingerprint(model):
    """Fine-tunes may differ in the projector or in one block alone."""
    leaves, tree = jax.tree.flatten(model.params)
    draw, seen = np.random.default_rng(0), {models.fingerprint(model)}
    for number, leaf in enumerate(leaves):
        other = np.array(leaf)
        other.flat[draw.integers(other.size)] += 0.1
        params = jax.tree.unflatten(tree, [*leaves[:number], other, *leaves[number + 1 :]])
        seen.add(models.fingerprint(dataclasses.replace(model, params=params)))
    assert len(seen) == 1 + len(leaves)


@pytest.mark.parametrize("first", [0, 65535, 2**32 - 70000])
def test_checksums_are_the_same_on_the_host_and_on_devices(first):
    x = jax.random.normal(jax.random.key(0), (3, 35000, 2))
    x = x.at[0, :4, 0].set(jnp.asarray([0.0, -0.0, 1e-9, -1e-30]))
    expected = int(fingerprints._sum_on_devices(x, np.uint32(first)))
    assert fingerprints._sum_on_host(np.asarray(x), first) == expected
    # float16 holds the weights of a checkpoint in bfloat16 but for the tiniest.
    coarse = x.astype(jnp.bfloat16).astype(jnp.float16)
    assert fingerprints._sum_on_host(np.asarray(coarse), first) == expected
    # The layers of a stack add up to it.
    parts = [fingerprints._sum_on_host(np.asarray(x[i]), first + i * 70000) for i in range(3)]
    assert sum(parts) % 2**32 == expected
