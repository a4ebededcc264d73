"""Arguments of a wrong kind in Python: one clear error."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import pallas_kernels
import vkq_jax

pytestmark = pytest.mark.usefixtures("as_users_run_it")

X = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
SIGNS = vkq_jax.presets["signs-1bit"].key
WRONG = [None, 3, "text", b"bytes", [1, 2], {"a": 1}, np.ones(3), object(), SIGNS]


TAKERS = {
    "dequantize": vkq_jax.dequantize,
    "dequantize tables": lambda x: x is None or vkq_jax.dequantize(CODES, x),
    "quantize": lambda x: vkq_jax.quantize(x, SIGNS),
    "quantize valid": lambda x: x is None or vkq_jax.quantize(X, SIGNS, valid=x),
    "fake_quantize": lambda x: vkq_jax.fake_quantize(x, SIGNS),
    "cosine": lambda x: vkq_jax.cosine(x, x) if not isinstance(x, np.ndarray | list | int) else x,
    "take_sequences": lambda x: vkq_jax.take_sequences(x, [0]),
    "grow": lambda x: vkq_jax.grow(x, 9),
    "append": lambda x: vkq_jax.append(x, X, X),
    "share_visual": lambda x: vkq_jax.share_visual(x, 2),
    "cache_nbytes": vkq_jax.cache_nbytes,
    "save_cache": lambda x: vkq_jax.save_cache("never", x),
    "save_score_map": lambda x: vkq_jax.save_score_map("never", x),
    "save_tables": lambda x: vkq_jax.save_tables("never", x),
    "load_cache": lambda x: isinstance(x, str | bytes) or vkq_jax.load_cache(x),
    "prepare": lambda x: models.prepare(x, prompts="question"),
    "prompts": lambda x: models.prepare(MODEL, prompts=x),
    "images": lambda x: models.prepare(MODEL, prompts="<image>", images=x),
    "input_ids": lambda x: models.prepare(MODEL, input_ids=x),
    "pixel_values": lambda x: models.prepare(MODEL, input_ids=None, pixel_values=x),
    "chat_prompt": lambda x: models.chat_prompt(x, "question"),
    "chat later_turn": lambda x: models.chat_prompt(MODEL, "question", later_turn=x),
    "later_turn": lambda x: models.prepare(MODEL, prompts="question", later_turn=x),
    "save_weights": lambda x: models.save_weights(x, "never"),
    "presets": lambda x: x is None or models.calibrate_codes(MODEL, [], presets=x),
    "tokens": lambda x: x == 3 or models.calibrate_codes(MODEL, [], tokens=x),
    "seed": lambda x: x == 3 or models.calibrate_codes(MODEL, [], seed=x),
    "calibrate_scores": lambda x: models.calibrate_scores(MODEL, x),
    "decode": lambda x: models.decode(x, [1]),
    "forward": lambda x: models.forward(x, x),
    "fingerprint": models.fingerprint,
    "attach_tables": lambda x: models.attach_tables(x, "never"),
    "pad_to_multiple": models.pad_to_multiple,
}
MODEL = models.Model(None, None, models.read_config("tiny"))  # type: ignore[arg-type]
CODES = vkq_jax.quantize(jnp.asarray(X), SIGNS)


@pytest.mark.parametrize("name", TAKERS)
def test_other_things_are_one_clear_error(tmp_path, monkeypatch, one_clear_error, name):
    monkeypatch.chdir(tmp_path)
    refused = 0
    for value in WRONG:
        try:
            TAKERS[name](value)
        except Exception as error:
            one_clear_error(error)
            refused += 1
    assert refused > 2
    assert not list(tmp_path.iterdir())


def kept_in(cache):
    """Results of the functions that take a whole cache."""
    tokens, query = np.ones((1, 1, 1, 1, 8), np.float32), np.ones((1, 1, 1, 8), np.float32)
    yield "append", lambda cache: vkq_jax.append(cache, tokens, tokens)
    yield "attend_layer", lambda cache: pallas_kernels.attend_layer(query, cache, 0)
    yield "grow", lambda cache: vkq_jax.grow(cache, 9)
    yield "share_visual", lambda cache: vkq_jax.share_visual(cache, 2)
    yield "take_sequences", lambda cache: vkq_jax.take_sequences(cache, [0, 0])


def test_a_cache_that_waited_on_the_host_goes_on(cache):
    for name, use in kept_in(cache):
        parked, kept = use(jax.device_get(cache)), use(cache)
        assert jax.tree.structure(parked) == jax.tree.structure(kept), name
        jax.tree.map(np.testing.assert_array_equal, parked, kept)


def test_arrays_that_were_deleted_are_named(one_clear_error, cache, inputs):
    lost = jax.tree.map(lambda x: jnp.array(x, copy=True), inputs)
    jax.tree.map(lambda x: x.delete(), lost)
    gone = jax.tree.map(lambda x: jnp.array(x, copy=True), cache)
    jax.tree.map(lambda x: x.delete(), gone)
    array = jnp.ones((1, 8, 8))
    array.delete()
    uses = [(name, lambda use=use: use(gone)) for name, use in kept_in(cache)]
    uses += [("cosine", lambda: vkq_jax.cosine(array, X[:1]))]
    uses += [("quantize", lambda: vkq_jax.quantize(array, SIGNS))]
    uses += [("valid", lambda: vkq_jax.quantize(X, SIGNS, valid=array))]
    uses += [("pad_to_multiple", lambda: models.pad_to_multiple(lost))]
    for name, use in uses:
        with pytest.raises(ValueError, match="whose buffer was deleted, or donated") as error:
            use()
        one_clear_error(error.value)
        assert name


def test_shapes_are_no_arrays(one_clear_error):
    for use in (
        lambda: vkq_jax.quantize(X, SIGNS, valid=jax.ShapeDtypeStruct((2, 8), bool)),
        lambda: vkq_jax.quantize(jax.ShapeDtypeStruct((2, 8, 8), jnp.float32), SIGNS),
        lambda: vkq_jax.cosine(X, jax.ShapeDtypeStruct((2, 8, 8), jnp.float32)),
    ):
        with pytest.raises(ValueError, match=r"expected|must be") as error:
            use()
        one_clear_error(error.value)


# These say more in checks of their own, tested above and by their own suites.
CHECKED_OTHERWISE = {"dequantize", "empty_cache", "fake_quantize", "grow", "load_cache"}
CHECKED_OTHERWISE |= {"load_score_map", "load_tables", "per_head", "per_layer", "quantize"}
CHECKED_OTHERWISE |= {"register_preset", "resolve", "save_cache", "save_score_map", "save_tables"}
CHECKED_OTHERWISE |= {"share_visual", "take_sequences", "visual_spans", "cache_nbytes"}


def checked_functions():
    """Public functions whose arguments are checked against their annotations."""
    for package in (vkq_jax, pallas_kernels):
        for name in package.__all__:
            if inspect.isfunction(getattr(package, name)) and name not in CHECKED_OTHERWISE:
                yield pytest.param(getattr(package, name), id=name)


@pytest.mark.parametrize("function", [*checked_functions()])
def test_every_argument_is_checked_by_its_annotation(one_clear_error, cache, function):
    query, tokens = jnp.ones((1, 1, 1, 8), jnp.float32), jnp.ones((1, 1, 1, 1, 8), jnp.float32)
    common = {
        "bank": vkq_jax.VisualBank(CODES, CODES, jnp.ones(2, jnp.int32)),
        "cache": cache,
        "cache_layer": cache.layer(0),
        "config": SIGNS,
        "index": jnp.zeros((1, 1), jnp.int32),
        "input_ids": jnp.ones((1, 2), jnp.int32),
        "key": query,
        "layer": 0,
        "name": "xla",
        "quant": vkq_jax.presets["signs-1bit"],
        "query": query,
        "valid": jnp.ones((1, 1), bool),
        "value": query,
        "visual": jnp.zeros((1, 1), bool),
        "visual_token_ids": 1,
        "window": 1,
        "x": X,
        "x_hat": X,
    }
    own = {"append": {"key": tokens, "value": tokens}, "attend_layer": {"index": 0}}
    parameters = inspect.signature(function).parameters
    needed = [name for name, p in parameters.items() if p.default is p.empty]
    good = {name: common[name] for name in needed} | own.get(function.__name__, {})
    for name in parameters:
        for wrong in (object(), b"bytes", {"a": 1}, jax.random.key(0), np.ones((1,) * 9, complex)):
            with pytest.raises(ValueError, match=name) as error:
                function(**good | {name: wrong})
            one_clear_error(error.value)


@pytest.mark.parametrize("dtype", ["S1", "O", "U3", "M8[s]", "c8", "i4", "?", "V4"])
def test_arrays_of_other_things_than_floats(one_clear_error, dtype):
    with pytest.raises(ValueError, match="x") as error:
        vkq_jax.quantize(np.zeros((2, 4, 8), dtype), SIGNS)
    one_clear_error(error.value)


@pytest.mark.parametrize("number", [10**400, -(10**400), 2**64])
def test_settings_of_hundreds_of_digits_are_one_clear_error(one_clear_error, number):
    for make in (
        lambda: vkq_jax.LevelCodes(bits=number),
        lambda: vkq_jax.LevelCodes(bits=1, group_size=number),
        lambda: vkq_jax.Quantile(number),
        lambda: vkq_jax.ScoreCalibration(tau1=number),
        lambda: dataclasses.replace(SIGNS, gamma=number),
    ):
        with pytest.raises(ValueError, match="must lie in") as error:
            make()
        one_clear_error(error.value)


def test_traced_arrays_where_values_are_needed(tmp_path, one_clear_error, cache, inputs):
    def traced(call):
        with pytest.raises(ValueError, match="traced") as error:
            jax.jit(call)(jax.tree.map(jnp.asarray, (cache, inputs)))
        one_clear_error(error.value)

    traced(lambda given: vkq_jax.save_cache(tmp_path / "x", given[0]))
    traced(lambda given: list(models.stream(None, given[1], max_new_tokens=1)))  # type: ignore
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "y/" * 3000])
def test_impossible_paths_are_one_clear_error(one_clear_error, cache, path):
    for call in (
        lambda: vkq_jax.save_cache(path, cache),
        lambda: vkq_jax.load_cache(path),
        lambda: vkq_jax.load_tables(path),
        lambda: models.save_weights(MODEL, path),
        lambda: models.load(path),
        lambda: models.prepare(MODEL, prompts="<image>", images=path),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            call()
        one_clear_error(error.value)


def test_classes_of_ones_own_are_classes(tmp_path, one_clear_error, cache):
    vkq_jax.save_cache(tmp_path / "file", cache)
    for types in ("text", [1], 3, None, jax.random.key(0)):
        with pytest.raises(ValueError, match="types: expected a list of classes") as error:
            vkq_jax.load_cache(tmp_path / "file", types=types)  # type: ignore[arg-type]
        one_clear_error(error.value)


def test_a_measure_of_errors_takes_one_shape_and_counts_valid_positions(one_clear_error):
    """A mask of one row stands for all, as in `quantize`; it counted one position."""
    x_hat, valid = X * 1.5 + 0.1, np.arange(8) < 3
    for measure in (vkq_jax.cosine, vkq_jax.relative_squared_error):
        np.testing.assert_array_equal(
            measure(X, x_hat, valid=valid), measure(X, x_hat, valid=np.tile(valid, (2, 1)))
        )
        for wrong in ({"x_hat": X[:1]}, {"x_hat": X[0]}, {"x_hat": X, "valid": np.ones(3, bool)}):
            with pytest.raises(ValueError, match=r"x_hat must have|valid must be") as error:
                measure(X, **wrong)
            one_clear_error(error.value)
    one = vkq_jax.quantization_error(X, SIGNS, valid=np.ones((1, 1), bool))
    np.testing.assert_array_equal(one.cosine, vkq_jax.quantization_error(X, SIGNS).cosine)


@pytest.mark.parametrize("begin", [vkq_jax.begin_decode, None])
def test_tensors_of_a_layer_are_checked(one_clear_error, cache, begin):
    made = begin(cache) if begin else vkq_jax.begin_prefill(cache, np.zeros((1, 1), bool))
    x = np.ones((1, 1, 1, 8), np.float32)
    assert made.attend(np.int64(0), x, x, x)[0].shape == x.shape
    for arguments, options in (
        ((0, None, x, x), {}),
        ((0, [[1]], x, x), {}),
        ((True, x, x, x), {}),
        (("a", x, x, x), {}),
        ((2**40, x, x, x), {}),
        ((0, x, x, x), {"starts": "x"}),
        ((0, x, x, x), {"logits_scale": "x"}),
        ((0, x, x, x), {"logits_soft_cap": 2**70}),
        ((0, x, x, x), {"window": 2**40}),
    ):
        with pytest.raises(ValueError, match="must be") as error:
            made.attend(*arguments, **options)
        one_clear_error(error.value)


@pytest.mark.parametrize(
    ("key", "value", "valid", "message"),
    [
        ((1, 1, 3, 2, 8), None, None, r"key must be \[L, B, T, K, H\] = \[2, 1, 3, 2, 8\]"),
        ((2, 1, 3, 1, 8), None, None, "key must be"),
        ((2, 1, 3, 2, 8), (2, 1, 3, 2, 1), None, "value must be"),
        ((2, 1, 3, 2, 8), (2, 1, 1, 2, 8), None, "value must be"),
        ((2, 4, 3, 2, 8), None, None, "key must be"),
        ((2, 1, 3, 2, 8), None, (1, 1), r"valid must be \[B, T\] = \[1, 3\]"),
    ],
)
@pytest.mark.parametrize("quant", ["none", {0: "none", (1, 0): "vkq-1bit"}])
def test_tokens_of_another_cache_are_not_appended(
    one_clear_error, quant, key, value, valid, message
):
    """Fewer layers, and sizes of 1, were taken for all."""
    per_layer = quant if isinstance(quant, str) else vkq_jax.per_layer("signs-1bit", quant)
    sizes = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 8, "cache_length": 4}
    cache = vkq_jax.empty_cache(quant=per_layer, batch=1, dtype=jnp.float32, **sizes)
    mask = None if valid is None else jnp.ones(valid, bool)
    with pytest.raises(ValueError, match=message) as error:
        vkq_jax.append(cache, jnp.ones(key), jnp.ones(value or key), mask)
    one_clear_error(error.value)
    longer = vkq_jax.append(cache, *jnp.ones((2, 2, 1, 3, 2, 8)), jnp.ones((1, 3), bool))
    assert int(longer.text_length[0]) == 3


@pytest.mark.parametrize("shape", [(0, 1, 1, 8), (1, 1, 0, 8), (1, 1, 1, 4), (2, 1, 1, 8)])
def test_queries_of_another_cache_have_no_weights(one_clear_error, cache, shape):
    with pytest.raises(ValueError, match="query must be") as error:
        vkq_jax.attention_weights(jnp.ones(shape), cache.layer(0))
    one_clear_error(error.value)


def test_a_pass_is_of_a_token_at_least(one_clear_error, cache):
    for begin in (vkq_jax.begin_decode, vkq_jax.begin_prefill):
        with pytest.raises(ValueError, match="must be booleans") as error:
            begin(cache, jnp.ones((1, 0), bool))
        one_clear_error(error.value)


@pytest.mark.parametrize("groups", [None, 3, "text", [1], ((1, 2),), ((vkq_jax.Cells((0,)), 3),)])
def test_groups_of_layers_are_groups(one_clear_error, groups):
    with pytest.raises(ValueError, match="groups") as error:
        vkq_jax.LayerGroups(groups)
    one_clear_error(error.value)
    with pytest.raises(ValueError, match="layers"):
        vkq_jax.Cells(groups)
