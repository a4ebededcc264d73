"""The public passes over a cache: a model of one's own fills and reads it through nothing else."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax

LAYERS, BATCH, HEADS, KV_HEADS, DIM, VISUAL = 3, 2, 4, 2, 8, 9
CODES = "minmax-1bit"
WEIGHTS = jax.random.normal(jax.random.key(0), (LAYERS, 4, HEADS * DIM, HEADS * DIM)) / 6
# Image first in one prompt; text around it and padding at the start in the other.
IS_VISUAL = jnp.asarray([[1] * 9 + [0] * 4, [0, 0, 0] + [1] * 7 + [0, 0, 0]], bool)
VALID = jnp.asarray([[1] * 13, [0] + [1] * 12], bool)
PROMPT = jax.random.normal(jax.random.key(1), (BATCH, 13, HEADS * DIM))
NEXT = jax.random.normal(jax.random.key(2), (BATCH, 2, HEADS * DIM))


def empty(quant="none", cache_length=9, **options):
    return vkq_jax.empty_cache(
        num_layers=LAYERS,
        batch=BATCH,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        cache_length=cache_length,
        quant=quant,
        dtype=jnp.float32,
        **options,
    )


def project(weights, x):
    """Queries, keys and values of one layer."""
    query, key, value = (
        (x @ w).reshape(*x.shape[:2], HEADS, DIM) for w in jnp.split(weights[:3], 3) for w in w
    )
    return query, key[:, :, :KV_HEADS], value[:, :, :KV_HEADS]


def run(x, reading, **options):
    """The toy model in a Python loop."""
    for layer in range(LAYERS):
        output, reading = reading.attend(layer, *project(WEIGHTS[layer], x), **options)
        x = x + output.reshape(x.shape) @ WEIGHTS[layer, 3]
    return x, reading.finish()


def scanned(x, reading):
    """The same as a loop over traced layers."""

    def step(carry, item):
        x, reading = carry
        layer, weights = item
        output, reading = reading.attend(layer, *project(weights, x))
        return (x + output.reshape(x.shape) @ weights[3], reading), None

    (x, reading), _ = jax.lax.scan(step, (x, reading), (jnp.arange(LAYERS), WEIGHTS))
    return x, reading.finish()


def whole(x, valid, window=None):
    """The toy model on all tokens at once, without a cache."""
    number = jnp.cumsum(valid, -1) - 1
    seen = jnp.tril(jnp.ones((x.shape[1],) * 2, bool)) & valid[:, None]
    if window is not None:
        seen &= number[:, :, None] - number[:, None] < window
    for layer in range(LAYERS):
        query, key, value = project(WEIGHTS[layer], x)
        mixed = jax.nn.dot_product_attention(query, key, value, mask=seen[:, None])
        mixed = jnp.where(seen.any(-1)[..., None, None], mixed, 0)
        x = x + mixed.reshape(x.shape) @ WEIGHTS[layer, 3]
    return x


@partial(jax.jit, static_argnames=("quant", "cache_length"))
def prompted(quant="none", cache_length=9):
    cache = empty(quant, cache_length)
    return run(PROMPT, vkq_jax.begin_prefill(cache, IS_VISUAL, valid=VALID, num_visual=VISUAL))


@pytest.mark.parametrize("window", [None, 3])
def test_without_codes_the_passes_are_plain_attention(window):
    with jax.numpy_rank_promotion("allow"):
        cache = empty(keep_indices=window is not None)
        reading = vkq_jax.begin_prefill(cache, IS_VISUAL, valid=VALID, first_turn=window is None)
        loop = jax.jit(partial(run, window=window))
        x, cache = loop(PROMPT, reading)
        valid = jnp.asarray([[True, False], [True, True]])  # the first sequence has ended
        y, after = loop(NEXT, vkq_jax.begin_decode(cache, valid))
        both, is_valid = jnp.concatenate([PROMPT, NEXT], 1), jnp.concatenate([VALID, valid], 1)
        expected = jax.jit(whole, static_argnums=2)(both, is_valid, window)
    np.testing.assert_allclose(x[VALID], expected[:, :13][VALID], atol=1e-5)
    np.testing.assert_allclose(y[valid], expected[:, 13:][valid], atol=1e-5)
    assert cache.position.tolist() == cache.num_tokens.tolist() == [13, 12]
    assert after.position.tolist() == after.num_tokens.tolist() == [14, 14]
    assert [bank.length.tolist() for bank in after.visual] == [[9, 7]]
    assert after.visual[0].key.num_elements() == LAYERS * BATCH * KV_HEADS * VISUAL * DIM


def test_positions_of_visual_tokens_are_kept():
    positions = jax.random.randint(jax.random.key(3), (BATCH, 13, 3), 0, 99)
    reading = vkq_jax.begin_prefill(
        empty(), IS_VISUAL, valid=VALID, positions=positions,
        advance=jnp.asarray([9, 8], jnp.int32), keep_positions=True,
    )  # fmt: skip
    (bank,) = jax.jit(run)(PROMPT, reading)[1].visual
    for row, count in enumerate([9, 7]):
        expected = positions[row][(IS_VISUAL & VALID)[row]]
        np.testing.assert_array_equal(bank.position[row, :count], expected)


def test_a_later_turn_reads_the_earlier_ones():
    reading = vkq_jax.begin_prefill(empty(), IS_VISUAL[:, :10], valid=VALID[:, :10])
    loop = jax.jit(run)
    first, cache = loop(PROMPT[:, :10], reading)
    second, cache = loop(PROMPT[:, 10:], vkq_jax.begin_prefill(cache, IS_VISUAL[:, 10:]))
    expected, at_once = prompted()
    got = jnp.concatenate([first, second], 1)
    np.testing.assert_allclose(got[VALID], expected[VALID], atol=1e-5)
    chex.assert_trees_all_close(cache.text, at_once.text, atol=1e-5)


def test_jit_scan_and_vmap_change_nothing():
    def answer(x, y, cache, loop):
        reading = vkq_jax.begin_prefill(cache, IS_VISUAL, valid=VALID, num_visual=VISUAL)
        first, cache = loop(x, reading)
        second, cache = loop(y[:, :1], vkq_jax.begin_decode(cache))
        return (first, second), cache

    expected, filled = jax.jit(answer, static_argnums=3)(PROMPT, NEXT, empty(CODES), run)
    got, same = jax.jit(answer, static_argnums=3)(PROMPT, NEXT, empty(CODES), scanned)
    chex.assert_trees_all_close(got, expected, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(same, filled)
    pairs = [jnp.stack([x, 2 * x]) for x in (PROMPT, NEXT)]
    mapped, caches = jax.vmap(lambda x, y: answer(x, y, empty(CODES), scanned))(*pairs)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], mapped), expected, atol=1e-5)
    assert caches.position.tolist() == [[14, 13]] * 2


def test_what_a_step_leaves_alone_is_no_part_of_its_loop():
    """Else the visual banks, the largest thing there is, would be copied at every token."""
    _, cache = jax.eval_shape(partial(prompted, "vkq-1bit"))

    def step(cache):
        _, after = scanned(NEXT[:, :1], vkq_jax.begin_decode(cache))
        return after.visual

    jaxpr = jax.make_jaxpr(step)(cache).jaxpr
    assert jaxpr.outvars
    assert set(jaxpr.outvars) <= set(jaxpr.invars)


def test_gradients_of_queries_and_text_through_coded_tokens():
    _, cache = prompted(CODES)

    @jax.jit
    def loss(x):
        y, _ = run(x, vkq_jax.begin_decode(cache, jnp.ones((BATCH, 2), bool)))
        return jnp.square(y).sum()

    slope, shift = jax.jit(jax.grad(loss))(NEXT), jax.random.normal(jax.random.key(4), NEXT.shape)
    numeric = (loss(NEXT + 1e-2 * shift) - loss(NEXT - 1e-2 * shift)) / 2e-2
    np.testing.assert_allclose((slope * shift).sum(), numeric, rtol=1e-2)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_forgotten_layer_is_an_error(jitted):
    def forget(cache):
        step = vkq_jax.begin_decode(cache)
        _, step = step.attend(1, *project(WEIGHTS[0], NEXT[:, :1]))
        return step.finish()

    with pytest.raises(ValueError, match=r"finish\(\) needs attend\(\) of all 3 layers.*\[0, 2\]"):
        (partial(jax.eval_shape, forget) if jitted else forget)(empty())


def test_what_has_no_room_is_an_error_or_nan():
    small, visual = empty(cache_length=4), IS_VISUAL
    _, full = prompted(cache_length=5)
    grown = vkq_jax.grow(full, 10)
    cases = [
        (r"1: its text has no room in cache_length=4", small, {}),
        (r"0: it has more visual tokens than num_visual=8", empty(), {"num_visual": 8}),
        (r"0: first_turn of a cache with tokens", grown, {"first_turn": True}),
    ]
    for message, cache, options in cases:
        with pytest.raises(ValueError, match=message):
            vkq_jax.begin_prefill(cache, visual, valid=VALID, **options)

    def attended(cache, **options):
        reading = vkq_jax.begin_prefill(cache, visual, valid=VALID, **options)
        output, _ = reading.attend(0, *project(WEIGHTS[0], PROMPT))
        return jnp.isnan(output).all((1, 2, 3))

    assert jax.jit(lambda c: attended(c, num_visual=9))(small).tolist() == [False, True]
    assert jax.jit(lambda c: attended(c, num_visual=8))(empty()).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"1: a new token has no room in cache_length=5"):
        vkq_jax.begin_decode(full)
    # A sequence that has ended needs none.
    ended = vkq_jax.begin_decode(full, jnp.asarray([[True], [False]]))
    assert ended.fits.tolist() == [True, True]


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (lambda: vkq_jax.begin_decode(empty(), jnp.ones((3, 1), bool)), r"booleans \[B=2, T\]"),
        (lambda: vkq_jax.begin_decode(empty(), jnp.ones((2, 1))), r"Bool \[B, T\].*got float32"),
        (lambda: vkq_jax.begin_prefill(empty(), IS_VISUAL, valid=VALID[:, 1:]), r"T=13\], got"),
        (
            lambda: vkq_jax.begin_prefill(empty(), IS_VISUAL, advance=jnp.ones(2, jnp.int32)),
            "positions and advance belong together",
        ),
        (
            lambda: vkq_jax.begin_decode(empty()).attend(3, *project(WEIGHTS[0], NEXT[:, :1])),
            "got 3",
        ),
        (
            lambda: (
                vkq_jax.begin_decode(empty())
                .attend(1, *project(WEIGHTS[0], NEXT[:, :1]))[1]
                .attend(1, *project(WEIGHTS[1], NEXT[:, :1]))
            ),
            "layer 1 had its turn in this pass: expected each layer once",
        ),
        (
            lambda: vkq_jax.begin_decode(empty()).attend(
                0, *(x.astype(int) for x in project(WEIGHTS[0], NEXT[:, :1]))
            ),
            r"query must be Float \[B, T, N, H\], got int",
        ),
        (
            lambda: vkq_jax.begin_decode(empty()).attend(0, *project(WEIGHTS[0], NEXT)),
            r"key must be \[B, T, K, H\] = \[2, 1, 2, 8\].*got float32 \[2, 2, 2, 8\]",
        ),
        (
            lambda: vkq_jax.begin_decode(empty()).attend(
                0, *project(WEIGHTS[0], NEXT[:, :1]), window=3
            ),
            "keep_indices=True",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_error(as_users_run_it, begin, message):
    with pytest.raises(ValueError, match=message) as caught:
        begin()
    assert len(str(caught.value)) < 400


def test_inside_jit_the_size_of_the_bank_is_asked_for():
    with pytest.raises(ValueError, match="num_visual: expected the most visual tokens"):
        jax.jit(lambda visual: vkq_jax.begin_prefill(empty(), visual).finish())(IS_VISUAL)


class Counting(vkq_jax.Backend):
    """Counts how often coding is traced."""

    traced = 0

    def quantize(self, *arguments, **options):
        type(self).traced += 1
        return super().quantize(*arguments, **options)


def test_layers_in_a_python_loop_share_what_is_traced_and_take_turns():
    """Else a prefill compiles for minutes, and keeps the keys and values of all layers on a GPU."""

    def fill(x):
        options = {"valid": VALID, "num_visual": VISUAL, "backend": Counting()}
        return run(x, vkq_jax.begin_prefill(empty("vkq-1bit"), IS_VISUAL, **options))

    equations = jax.make_jaxpr(fill)(PROMPT).eqns
    assert Counting.traced == 1
    text = empty().text.key.aval
    barriers = [e for e in equations if e.primitive.name == "optimization_barrier"]
    written = [e for e in barriers if [v.aval for v in e.outvars].count(text) == 2]
    assert len(written) == LAYERS
