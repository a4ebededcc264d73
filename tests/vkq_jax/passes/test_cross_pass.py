"""Cross-attention layers: pictures in banks of their own, which replace each other."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from vkq_jax.attention.post_scaled import attend_dense

LAYERS, CROSS, BATCH, HEADS, KV_HEADS, DIM = 2, (1,), 2, 4, 2, 8
PLACES = 6  # of each prompt's pictures


def empty(quant="none", **changes):
    sizes = {
        "num_layers": LAYERS,
        "batch": BATCH,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "cache_length": 16,
        "dtype": jnp.float32,
        "cross_layers": CROSS,
    }
    return vkq_jax.empty_cache(**(sizes | changes), quant=quant)


def draw(seed, tokens, heads=KV_HEADS):
    return jax.random.normal(jax.random.key(seed), (BATCH, tokens, heads, DIM))


def pictures(kept, number, shown):
    """The places that each token sees, as a model would say it; before all pictures, any place."""
    kept, number, shown = (jnp.asarray(x) for x in (kept, number, shown))
    seen = (shown[:, :, None] == number[:, None]) & kept[:, None]
    mask = jnp.where((shown < 0)[..., None], kept.any(-1)[:, None, None], seen)
    return vkq_jax.PromptPictures(
        kept, number.astype(jnp.int32), shown.astype(jnp.int32), mask, num_kept=4
    )


def run(passing, tokens, seed, images=None):
    """All layers; the outputs of the cross-attention layer, and the cache."""
    for layer in range(LAYERS):
        query = draw(seed, tokens, HEADS)
        if layer not in CROSS:
            _, passing = passing.attend(layer, query, draw(seed + 1, tokens), draw(2, tokens))
        elif not passing.cross[0].is_empty:
            crossed, passing = passing.attend_cross(layer, query, *(images or ()))
    return crossed, passing.finish()


# The first sequence has a picture of 4 tokens in 6 places from its token 1 on, the second has none.
FIRST = pictures(
    kept=[[True, True, False, True, True, False], [False] * PLACES],
    number=[[1] * PLACES, [0] * PLACES],
    shown=[[-1, 1, 1], [-1, -1, -1]],
)
IMAGES = draw(10, PLACES), draw(11, PLACES)
# Later the first sequence gets another one at token 1, and so does the second.
LATER = pictures(
    kept=[[True, True, False, False, False, False], [False, True, True, True, False, False]],
    number=[[1] * PLACES, [1] * PLACES],
    shown=[[-1, 1], [-1, 1]],
)
MORE = draw(20, PLACES), draw(21, PLACES)
NOTHING = jnp.zeros((BATCH, 3), bool)


@pytest.fixture(scope="module")
def turns():
    """Outputs of a prompt, a new token, another prompt and another token, and the caches."""
    return answered()


@jax.jit
def answered():
    first, cache = run(begin(), 3, 30, IMAGES)
    step, after = run(vkq_jax.begin_decode(cache), 1, 40)
    reading = vkq_jax.begin_prefill(after, NOTHING[:, :2], num_visual=0, pictures=LATER)
    second, more = run(reading, 2, 50, MORE)
    last, end = run(vkq_jax.begin_decode(more), 1, 60)
    return (first, step, second, last), (cache, after, more, end)


def begin(quant="none"):
    return vkq_jax.begin_prefill(empty(quant), NOTHING, num_visual=0, pictures=FIRST)


def dense(seed, tokens, images, mask):
    return attend_dense(draw(seed, tokens, HEADS), *images, jnp.asarray(mask)).output


@jax.jit
def expected():
    """The outputs of `answered` without a cache."""
    both = [jnp.concatenate(pair, 1) for pair in zip(IMAGES, MORE, strict=True)]
    # Before its second picture the first sequence sees the first one still; the other sees all.
    first = jnp.concatenate([FIRST.kept[0], jnp.zeros(PLACES, bool)])
    before = jnp.stack([first, jnp.arange(2 * PLACES) >= PLACES])
    behind = jnp.concatenate([jnp.zeros((BATCH, PLACES), bool), LATER.kept], 1)
    return (
        dense(30, 3, IMAGES, FIRST.mask),
        dense(40, 1, IMAGES, FIRST.mask[:, -1:]),
        dense(50, 2, both, jnp.stack([before, behind], 1)),
        dense(60, 1, both, behind[:, None]),
    )


def test_tokens_see_the_last_pictures_up_to_their_own(turns):
    got, _ = turns
    chex.assert_trees_all_close(got, expected(), atol=1e-5)
    for output in got[:2]:
        assert (output[1] == 0).all(), "a sequence without a picture sees nothing"


def test_pictures_lie_in_cross_attention_layers_alone_and_text_in_the_others(turns):
    _, (cache, _, _, end) = turns
    text, cross = cache.parts
    assert (text.num_layers, cross.num_layers) == (1, 1)
    assert (text.visual, cross.text_length.tolist()) == ((), [0, 0])
    assert [lengths.tolist() for lengths in end.visual_lengths] == [[4, 0], [2, 3]]
    assert (end.num_tokens.tolist(), end.position.tolist()) == ([7, 7], [7, 7])
    assert end.quant == cross.quant
    slot = 2 * BATCH * KV_HEADS * DIM * 4  # a key and a value of one layer in each sequence
    size = vkq_jax.cache_nbytes(cache)
    assert size.visual_codes == slot * 4
    assert size.text == slot * (16 + 1) + BATCH * 4


def test_a_coded_cache_is_saved_taken_shared_and_grown(turns, tmp_path):
    _, cache = jax.jit(lambda: run(begin("signs-1bit"), 3, 30, IMAGES))()
    vkq_jax.save_cache(tmp_path / "cache", cache)
    again = vkq_jax.load_cache(tmp_path / "cache")
    chex.assert_trees_all_equal(again, cache)
    assert again.cross_layers == CROSS
    assert "layers 1" in repr(cache)
    decode = jax.jit(lambda cache: run(vkq_jax.begin_decode(cache), 1, 40)[0])
    alone = decode(cache)
    one = vkq_jax.take_sequences(vkq_jax.grow(cache, 32), [0])
    assert (one.cache_length, one.parts[-1].cache_length) == (32, 1)
    shared = decode(vkq_jax.share_visual(one, BATCH))
    chex.assert_trees_all_close(shared[0], alone[0], atol=1e-5)
    _, (full, *_) = turns
    assert vkq_jax.cache_nbytes(cache).visual < vkq_jax.cache_nbytes(full).visual


@functools.partial(jax.jit, static_argnums=0)
def looped(quant):
    """Outputs of a new token in two cross-attention layers, which run in a loop; and the cache."""
    cache, layers = empty(quant, num_layers=3, cross_layers=(1, 2)), jnp.arange(1, 3)

    def reading(passing, layer):
        return passing.attend_cross(layer, draw(30, 3, HEADS), *IMAGES)[1], None

    passing = vkq_jax.begin_prefill(cache, NOTHING, num_visual=0, pictures=FIRST)
    passing, _ = jax.lax.scan(reading, passing, layers)
    _, passing = passing.attend(0, draw(30, 3, HEADS), draw(31, 3), draw(2, 3))
    cache = passing.finish()

    def decoding(passing, layer):
        return passing.attend_cross(layer, draw(40, 1, HEADS))[::-1]

    return jax.lax.scan(decoding, vkq_jax.begin_decode(cache), layers)[1], cache


def test_cross_attention_layers_and_their_heads_have_settings_of_their_own(tmp_path):
    quant = vkq_jax.per_layer("signs-1bit", {(1, 1): "none"})
    got, cache = looped(quant)
    assert [cells.layers for cells in cache.cells] == [(0,), (2,), (1,), (1,)]
    (signs, _), (exact, _) = looped("signs-1bit"), looped("none")
    chex.assert_trees_all_close(got[1], signs[1], atol=1e-5)
    chex.assert_trees_all_close(got[0, :, :, :2], signs[0, :, :, :2], atol=1e-5)
    chex.assert_trees_all_close(got[0, :, :, 2:], exact[0, :, :, 2:], atol=1e-5)
    assert cache.quant == quant.settle(3, KV_HEADS)
    vkq_jax.save_cache(tmp_path / "cache", cache)
    chex.assert_trees_all_equal(vkq_jax.load_cache(tmp_path / "cache"), cache)


def test_layers_that_attend_in_the_wrong_way_are_named():
    reading = vkq_jax.begin_prefill(empty(), NOTHING, pictures=FIRST)
    query, key = draw(0, 3, HEADS), draw(1, 3)
    with pytest.raises(ValueError, match=r"layer: expected one of \[0\], got 1"):
        reading.attend(1, query, key, key)
    with pytest.raises(ValueError, match=r"layer: expected one of \[1\], got 0"):
        reading.attend_cross(0, query, *IMAGES)
    with pytest.raises(ValueError, match=r"key must be \[B, V, K, H\] = \[2, 6, 2, 8\]"):
        reading.attend_cross(1, query, key, key)
    with pytest.raises(ValueError, match="expected keys and values of the pictures"):
        reading.attend_cross(1, query)
    with pytest.raises(ValueError, match="none of layers"):
        reading.finish()
    with pytest.raises(ValueError, match="no sequence has a picture"):
        vkq_jax.begin_decode(empty()).attend_cross(1, draw(0, 1, HEADS))
    plain = empty(cross_layers=())
    with pytest.raises(ValueError, match="no cross-attention layers"):
        vkq_jax.begin_prefill(plain, NOTHING, pictures=FIRST)
    for layers in ((2,), (0, 1), (1, 1)):
        with pytest.raises(ValueError, match="cross_layers: expected some of the layers"):
            empty(cross_layers=layers)
    with pytest.raises(NotImplementedError, match="append"):
        vkq_jax.append(empty(), *jnp.zeros((2, 2, 2, 1, 2, 8)))


def test_a_cache_with_pictures_and_text_in_one_part_is_not_written(turns, tmp_path):
    _, (cache, *_) = turns
    text, cross = cache.parts
    wrong = dataclasses.replace(
        cache, parts=(dataclasses.replace(text, visual=cross.visual), cross)
    )
    assert cache.cross_cache.cells == cache.cells[1:]
    with pytest.raises(ValueError, match="cross-attention layers"):
        vkq_jax.save_cache(tmp_path / "cache", wrong)


def test_a_text_prompt_leaves_the_layers_out():
    reading = vkq_jax.begin_prefill(empty(), NOTHING)
    assert reading.cross[0].is_empty

    @jax.jit
    def read(reading):
        _, reading = reading.attend(0, draw(0, 3, HEADS), draw(1, 3), draw(2, 3))
        return reading.finish()

    cache = read(reading)
    assert (cache.visual_lengths, cache.text_length.tolist()) == ((), [3, 3])
    np.testing.assert_array_equal(cache.parts[1].position, [3, 3])


def test_a_step_of_decoding_is_one_token_of_each_sequence():
    (cross,) = vkq_jax.begin_decode(empty()).cross
    assert cross.sees.shape == (BATCH, 1)
