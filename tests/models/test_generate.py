import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.decode_loop import emit_tokens_in_place
from models.generation.prefill import prefill
from models.sampling import Sampling
from tests.support import sampling_oracle
from tests.support.caches import deleted, relative_error
from tests.support.tiny_llava import batch, greedy_without_cache, prompt, tiny_model

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 1, seed=1), prompt(6, seed=2))
# Most tests take these, so that they share compiled programs, which is where the time goes. Where
# codes are not the subject they are sign codes, which compile in half the time of dictionary codes.
FOUR = {"max_new_tokens": 4, "stop_tokens": ()}
SIGNS = FOUR | {"quant": "signs-1bit"}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_without_quantization_it_is_greedy_decoding_of_the_forward_pass(model):
    inputs = batch(ROWS[0])
    got = models.generate(model, inputs, quant="none", max_new_tokens=6, stop_tokens=())
    np.testing.assert_array_equal(got.tokens[0], greedy_without_cache(model, inputs, 6))
    assert got.lengths.tolist() == [6]


@pytest.mark.parametrize(("quant", "side"), [("vkq-1bit", "left"), ("kivi-2bit", "right")])
def test_a_batch_of_unlike_prompts_gives_what_each_gives_alone(model, quant, side):
    together = models.generate(model, batch(*ROWS, side=side), quant=quant, **FOUR)
    pixels = batch(*ROWS).pixel_values
    for i, images in enumerate([pixels[:1], pixels[1:], None]):
        inputs = dataclasses.replace(batch(ROWS[i]), pixel_values=images)
        alone = models.generate(model, inputs, quant=quant, **FOUR)
        np.testing.assert_array_equal(together.tokens[i], alone.tokens[0])


@pytest.mark.parametrize("quantize_at", ["prompt", "image"])
def test_eight_bits_follow_full_precision(model, quantize_at):
    inputs = batch(*ROWS)
    exact = models.generate(model, inputs, quant="none", **FOUR)
    coded = models.generate(model, inputs, quant="minmax-8bit", quantize_at=quantize_at, **FOUR)
    np.testing.assert_array_equal(exact.tokens, coded.tokens)


def test_coding_before_the_question_equals_two_turns(model):
    """quantize_at="image" is a prefill of the image and one of the question on its cache."""
    quant = vkq_jax.resolve("vkq-1bit")
    whole = models.generate(model, batch(ROWS[0]), quantize_at="image", **FOUR)
    images = batch(ROWS[0][:-5])
    _, cache = prefill(model, images, quant=quant, cache_length=12)
    turn = models.generate(model, batch(ROWS[0][-5:]), cache=cache, **FOUR)
    np.testing.assert_array_equal(whole.tokens, turn.tokens)
    for a, b in zip(jax.tree.leaves(whole.cache), jax.tree.leaves(turn.cache), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_turns_equal_one_long_prompt_in_full_precision(model):
    first, second = prompt(3, "image", 4), prompt(2, "image", 3, seed=5)
    one = models.generate(model, batch(first), quant="none", max_new_tokens=3, stop_tokens=())
    two = models.generate(model, batch(second, seed=1), cache=one.cache, **FOUR)
    pixels = jnp.concatenate([batch(first).pixel_values, batch(second, seed=1).pixel_values])
    joined = dataclasses.replace(
        batch(first + one.tokens[0].tolist() + second), pixel_values=pixels
    )
    np.testing.assert_array_equal(two.tokens[0], greedy_without_cache(model, joined, 4))
    assert len(two.cache.visual) == 2
    assert two.cache.position.tolist() == [len(first) + 3 + len(second) + 4]


@pytest.mark.ci
def test_vmap_over_keys_of_one_prompt(model):
    def draw(key):
        sampling = Sampling(temperature=2.0)
        return models.generate(model, batch(ROWS[0]), sampling=sampling, key=key, **SIGNS).tokens

    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(jax.vmap(draw)(keys), jnp.stack([*map(draw, keys)]))


def test_stops_and_pads(model):
    inputs = batch(ROWS[0], prompt(4, "image", 2, seed=9))
    free = models.generate(model, inputs, quant="none", max_new_tokens=6, stop_tokens=())
    stop = int(free.tokens[0, 2])
    got = models.generate(model, inputs, quant="none", max_new_tokens=6, stop_tokens=(stop, 1))
    for row, length, all_tokens in zip(got.tokens, got.lengths, free.tokens, strict=True):
        hits = np.flatnonzero(np.isin(all_tokens, (stop, 1)))
        expected = int(hits[0]) + 1 if hits.size else 6
        assert int(length) == expected
        np.testing.assert_array_equal(row[:expected], all_tokens[:expected])
        assert not row[expected:].any()


def test_vmap_over_images_gives_the_tokens_of_a_loop(model):
    inputs = batch(ROWS[0])
    pixels = jnp.stack([batch(ROWS[0], seed=seed).pixel_values for seed in range(3)])

    def answer(pixel_values):
        example = dataclasses.replace(inputs, pixel_values=pixel_values)
        return models.generate(model, example, **FOUR).tokens

    np.testing.assert_array_equal(jax.vmap(answer)(pixels), jnp.stack([*map(answer, pixels)]))


def test_jit_of_the_whole_generation(model):
    inputs = batch(*ROWS)

    @jax.jit
    def answer(model, inputs):
        return models.generate(model, inputs, **SIGNS).tokens

    expected = models.generate(model, inputs, **SIGNS).tokens
    np.testing.assert_array_equal(answer(model, inputs), expected)


def test_streaming_ends_with_what_generate_returns(model):
    inputs = batch(*ROWS)
    expected = models.generate(model, inputs, **SIGNS)
    steps = list(models.stream(model, inputs, chunk=3, **SIGNS))
    assert len(steps) == 2
    np.testing.assert_array_equal(steps[-1].tokens, expected.tokens)
    np.testing.assert_array_equal(steps[-1].lengths, expected.lengths)
    assert not any(deleted(steps))


def test_sampling_needs_a_key_and_follows_it(model):
    inputs = batch(ROWS[0])

    def draw(seed, **sampling):
        return models.generate(
            model, inputs, sampling=Sampling(**sampling), key=jax.random.key(seed), **SIGNS
        ).tokens

    np.testing.assert_array_equal(draw(0, temperature=2.0), draw(0, temperature=2.0))
    assert (draw(0, temperature=2.0) != draw(1, temperature=2.0)).any()
    greedy = models.generate(model, inputs, **SIGNS).tokens
    np.testing.assert_array_equal(draw(0, temperature=2.0, top_k=1), greedy)
    np.testing.assert_array_equal(draw(0, temperature=2.0, top_p=1e-6), greedy)
    with pytest.raises(ValueError, match="PRNG key"):
        models.generate(model, inputs, max_new_tokens=1, sampling=Sampling(temperature=1.0))


def test_the_guard_of_score_calibration_is_counted(model):
    got = models.generate(model, batch(*ROWS), quant="calibquant-1bit", max_new_tokens=3)
    assert got.cache.calibration_skipped[2] == 0  # no image, no visual scores
    steps = int(got.lengths[0])
    assert 0 <= int(got.cache.calibration_skipped[0]) <= steps * 3 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (
            {"max_new_tokens": 10**9},
            r"max_new_tokens: expected at most 488, since 10\d{8} text tokens of 1 sequence take",
        ),
        ({"max_new_tokens": 4, "cache_length": 10**9}, "cache_length: expected at most 496, since"),
        ({"max_new_tokens": 4, "cache_length": 9}, "longer than the cache.*=12, got 9"),
        ({"max_new_tokens": 4, "quant": "vkq-1bits"}, "vkq-1bit"),
        ({"max_new_tokens": 4, "text_bits": 4}, "text_bits must be 8, or None.*got 4"),
        ({"max_new_tokens": 4, "quantize_at": "never"}, '"prompt" or "image", got \'never\''),
        (
            {"max_new_tokens": 4, "implementation": "cuda"},
            "mosaic_gpu, xla, reference or None, got .cuda.",
        ),
    ],
)
def test_bad_arguments_are_one_clear_error(model, options, message):
    with pytest.raises(ValueError, match=message):
        models.generate(model, batch(ROWS[0]), **options)


@pytest.mark.parametrize("quantize_at", ["prompt", "image"])
def test_text_in_8_bits_is_text_in_8_bits_in_every_turn(model, quantize_at):
    first = models.generate(model, batch(ROWS[0]), quantize_at=quantize_at, text_bits=8, **SIGNS)
    later = models.generate(model, batch(prompt(3)), cache=first.cache, **FOUR)
    again = models.generate(model, batch(prompt(3)), cache=first.cache, text_bits=8, **FOUR)
    assert first.cache.text_bits == later.cache.text_bits == 8
    np.testing.assert_array_equal(again.tokens, later.tokens)
    exact = models.generate(model, batch(ROWS[0]), quantize_at=quantize_at, **SIGNS)
    np.testing.assert_array_equal(first.tokens, exact.tokens)
    length = int(exact.cache.text_length[0])
    for got, expected in zip(
        first.cache.text.dequantize(), exact.cache.text.dequantize(), strict=True
    ):
        got, expected = (x[:, :, :, :length] for x in (got, expected))
        assert 1e-4 < relative_error(got, expected) < 2e-2
    with pytest.raises(ValueError, match="text_bits: expected None for a cache whose text is in"):
        models.generate(model, batch(prompt(3)), cache=exact.cache, text_bits=8, **FOUR)


def test_a_conversation_keeps_its_codes(model):
    one = models.generate(model, batch(ROWS[0]), quant="none", max_new_tokens=6, stop_tokens=())
    with pytest.raises(ValueError, match="keeps the codes"):
        models.generate(
            model, batch(prompt(3)), cache=one.cache, quant="vkq-1bit", max_new_tokens=1
        )


@pytest.mark.parametrize("quantize_at", ["prompt", "image"])
def test_padding_to_a_multiple_shares_compilations_and_changes_no_answer(model, quantize_at):
    options = {"quantize_at": quantize_at, **SIGNS}
    inputs = batch(ROWS[0])
    padded = models.pad_to_multiple(inputs, 16)
    assert padded.input_ids.shape == (1, 32)
    got = models.generate(model, padded, **options)
    np.testing.assert_array_equal(got.tokens, models.generate(model, inputs, **options).tokens)
    sizes = prefill._cache_size(), emit_tokens_in_place._cache_size()
    longer = models.pad_to_multiple(batch(prompt(4, "image", 9)), 16)
    models.generate(model, longer, **options)
    assert (prefill._cache_size(), emit_tokens_in_place._cache_size()) == sizes


def test_logits_processors_look_back_at_prompt_and_answer(model):
    """Each token is the best one of a forward pass over all before it, after every processor."""
    rows, stops = (ROWS[0], ROWS[2]), (2,)
    sampling = Sampling(
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        bad_words_ids=((13,), (60, 57)),
        suppress_tokens=(46,),
        begin_suppress_tokens=(60,),
        min_new_tokens=4,
        forced_eos_token_id=5,
    )
    options = {"quant": "none", "max_new_tokens": 6, "stop_tokens": stops, "sampling": sampling}
    got = models.generate(model, batch(*rows, side="left"), **options)
    *_, last = models.stream(model, batch(*rows, side="left"), chunk=4, **options)
    np.testing.assert_array_equal(last.tokens, got.tokens)
    whole = [row + got.tokens[i, : got.lengths[i]].tolist() for i, row in enumerate(rows)]
    logits = models.forward(model, batch(*whole))
    for i, row in enumerate(rows):
        for step, token in enumerate(whole[i][len(row) :]):
            before = whole[i][: len(row) + step]
            expected = sampling_oracle.process(
                sampling, logits[i, len(before) - 1], before,
                stops=stops, emitted=step, max_new_tokens=6,
            )  # fmt: skip
            assert token == expected.argmax()
    assert all(sequence[-1] in (2, 5) for sequence in whole)


def test_a_checkpoints_own_sampling_counts_and_another_temperature_compiles_nothing(model):
    own = Sampling(temperature=0.5, top_p=0.9, repetition_penalty=1.2)
    checkpoint = dataclasses.replace(model, config=dataclasses.replace(model.config, sampling=own))
    options = {"quant": "signs-1bit", "max_new_tokens": 3, "key": jax.random.key(0)}
    got = models.generate(checkpoint, batch(ROWS[0]), **options)
    expected = models.generate(model, batch(ROWS[0]), sampling=own, **options)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    size = emit_tokens_in_place._cache_size()
    warm = Sampling(temperature=1.7, top_p=0.3, repetition_penalty=2.0)
    models.generate(model, batch(ROWS[0]), sampling=warm, **options)
    assert emit_tokens_in_place._cache_size() == size
    with pytest.warns(UserWarning, match="repetition_penalty: only the tokens of this turn count"):
        models.generate(
            model, batch(prompt(2)), cache=got.cache, sampling=own, key=options["key"],
            max_new_tokens=3,
        )  # fmt: skip


def all_but_x64():
    stack = contextlib.ExitStack()
    for setting in (
        jax.numpy_dtype_promotion("strict"),
        jax.checking_leaks(),
        jax.debug_nans(True),
        jax.enable_custom_prng(True),
    ):
        stack.enter_context(setting)
    return stack


@pytest.mark.parametrize(
    "settings", [all_but_x64, lambda: jax.enable_x64(True)], ids=["others", "x64"]
)
@pytest.mark.ci
def test_it_works_whatever_jax_is_set_to(settings):
    """The core is tested under each setting alone: `tests/vkq_jax/test_jax_settings.py`."""
    model = tiny_model(jnp.bfloat16)
    options = {"max_new_tokens": 2, "sampling": Sampling(temperature=1.0, top_k=5, min_length=30)}
    inputs, key = batch(*ROWS), jax.random.key(3)
    expected = models.generate(model, inputs, key=key, quantize_at="image", **options)
    with settings():
        raw = jax.random.key_data(key)  # a legacy key
        got = models.generate(model, inputs, key=raw, quantize_at="image", **options)
        models.calibrate_scores(model, inputs, max_new_tokens=1)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
