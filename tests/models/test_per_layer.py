"""A model whose layers and heads have settings of their own, from the prompt to later turns."""

from functools import partial

import jax
import numpy as np
import pytest

import models
import vkq_jax
from models.attached_tables import find_codes
from models.families.registry import family_of
from models.generation.prefill import prefill
from models.generation.recoding import FULL_PRECISION, recode
from models.text.coded_layers import settle_layers
from pallas_kernels import decode_attention, explain
from tests.models.families import test_gemma4, test_mllama
from tests.support import qwen_vl
from tests.support.tiny_llava import batch, prompt, tiny_model
from vkq_jax.settings.layer_groups import Cells, groups_of

MIXED = vkq_jax.per_layer("minmax-1bit", {0: "none", -1: "none", (1, 1): "none"})
INPUTS = batch(prompt(3, "image", 5), prompt(2, "image", 1, seed=1))


def generate(model, **options):
    return models.generate(
        model, INPUTS, **{"quant": MIXED, "max_new_tokens": 3, "stop_tokens": (), **options}
    )


@pytest.fixture(scope="module")
def answered():
    return generate(tiny_model())


def test_layers_in_a_loop_and_one_by_one_are_the_same(answered):
    cache = answered.cache
    assert cache.cells == (Cells((0, 2)), Cells((1,), ((0,),)), Cells((1,), ((1,),)))
    assert [part.quant for part in cache.parts] == [
        vkq_jax.presets[name] for name in ("none", "minmax-1bit", "none")
    ]
    apart = generate(tiny_model().unstack_layers())
    np.testing.assert_array_equal(apart.tokens, answered.tokens)
    for x, y in zip(jax.tree.leaves(apart.cache), jax.tree.leaves(cache), strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-5, atol=1e-5
        )


def test_a_conversation_goes_on(answered):
    later = batch(prompt(4, seed=3), prompt(2, seed=4))
    second = models.generate(
        tiny_model(), later, cache=answered.cache, quant=MIXED, max_new_tokens=2, stop_tokens=()
    )
    assert (
        second.cache.num_tokens.tolist() == (answered.cache.num_tokens + 6 - np.r_[0, 2]).tolist()
    )
    with pytest.raises(ValueError, match="a conversation keeps the codes of its cache"):
        models.generate(tiny_model(), later, cache=answered.cache, quant="none", max_new_tokens=2)


def test_a_cache_in_full_precision_is_recoded_to_the_same():
    model, groups = tiny_model(), MIXED.settle(3, 2)
    run = partial(prefill, model, INPUTS, cache_length=9)
    _, expected = run(quant=groups)
    _, exact = run(quant=FULL_PRECISION)
    got = jax.jit(recode, static_argnames="quant")(model, exact, quant=groups)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-5, atol=1e-5
        )


def test_kernels_read_and_explain_each_group(answered):
    query = jax.random.normal(jax.random.key(0), (2, 1, 4, 16))
    attend = jax.jit(decode_attention, static_argnames="implementation")
    for layer in (0, 1):
        for heads, view in vkq_jax.heads_of_layer(answered.cache, layer):
            own = query[:, :, 2 * heads[0] : 2 * heads[-1] + 2]
            outputs = [attend(own, view, implementation=x) for x in ("xla", "reference")]
            np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    lines = explain(answered.cache, shape).splitlines()
    names = ["layers 0, 2:", "layers 1, heads 0:", "layers 1, heads 1:"]
    assert [line for line in lines if "layers" in line] == names


def test_calibrated_tables_come_with_their_layers():
    model = models.load("tiny")
    quant = vkq_jax.per_layer("vkq-1bit", {0: "none"})
    groups, (full, coded) = find_codes(model, quant)
    calibrated = model.calibrated.codes.find("vkq-1bit")
    assert [settings for _, settings in groups.groups] == [
        vkq_jax.presets["none"],
        calibrated.quant,
    ]
    assert full is None
    for own, whole in zip(*map(jax.tree.leaves, (coded, calibrated.tables)), strict=True):
        np.testing.assert_array_equal(own, whole[1:])


def test_calibrated_tables_come_with_their_heads():
    model = models.load("tiny")
    _, (full, coded) = find_codes(model, vkq_jax.per_head("vkq-1bit", {0: "none"}))
    calibrated = model.calibrated.codes.find("vkq-1bit")
    assert full is None
    for own, whole in zip(*map(jax.tree.leaves, (coded, calibrated.tables)), strict=True):
        np.testing.assert_array_equal(own, whole[:, 1:])


LINEAR = qwen_vl.config_json("qwen3_5")
CROSS = test_mllama.config_json()
SHARED = test_gemma4.config_json(text={"num_kv_shared_layers": 2})


@pytest.mark.parametrize(
    ("config", "held", "others"),
    [(LINEAR, [1, 4], [0, 2, -2]), (CROSS, [1, 3], [0, -2]), (SHARED, [0, -3], [-1, -2])],
)
def test_layers_without_visual_tokens_have_no_settings(config, held, others):
    """Linear attention, text alone, another layer's keys; a range needs one layer with some."""
    text = family_of(config["model_type"]).read_config(config).text
    settled = settle_layers(text, vkq_jax.per_layer("none", dict.fromkeys(held, "kivi-2bit")))
    kivi = vkq_jax.presets["kivi-2bit"]
    layers = [number % text.num_hidden_layers for number in held]
    found = [
        cells.layers for cells, own in groups_of(settled, range(text.num_own_layers)) if own == kivi
    ]
    assert found == [tuple(sorted(layers))]
    for place in (*others, (others[0], 0), range(others[0], others[0] + 1)):
        changed = vkq_jax.per_layer("none", {place: "kivi-2bit"})
        with pytest.raises(ValueError, match=r"hold visual tokens.*would have no effect") as caught:
            settle_layers(text, changed)
        assert len(str(caught.value)) < 400
    settle_layers(text, vkq_jax.per_layer("none", {range(text.num_hidden_layers): "kivi-2bit"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": vkq_jax.per_head("none", {2: "minmax-1bit"})}, r"heads in \[-2, 2\)"),
        ({"quant": vkq_jax.per_layer("none", {3: "minmax-1bit"})}, r"\[-3, 3\) for a model of 3"),
        ({"tables": vkq_jax.CalibratedCodes((), model="x")}, "tables"),
    ],
)
def test_bad_settings_are_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        generate(tiny_model(), **options)
    assert len(str(caught.value)) < 400
