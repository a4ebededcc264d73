"""Heads with settings of their own: each does what it would do in a cache of its setting."""

import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vkq_jax
from tests.vkq_jax.cache.test_layered import answered, begin
from tests.vkq_jax.passes.test_passes import (
    CODES,
    HEADS,
    KV_HEADS,
    LAYERS,
    NEXT,
    PROMPT,
    empty,
    run,
    scanned,
)
from vkq_jax.cache.any_cache import at_layer
from vkq_jax.cache.layered import split_layers
from vkq_jax.settings.layer_groups import Cells

MIXED = vkq_jax.per_layer(CODES, {(0, 1): "none", (1, 0): "none"})
SETTINGS = ((CODES, "none"), ("none", CODES), (CODES, CODES))  # of each layer's heads
CELLS = (
    Cells((0, 1), ((0,), (1,))),
    Cells((0, 1), ((1,), (0,))),
    Cells((2,)),
)


class Lockstep:
    """Passes of one setting each, of which every head takes the output of its own."""

    def __init__(self, passes):
        self.passes = passes

    def attend(self, layer, query, key, value):
        both = {name: p.attend(layer, query, key, value) for name, p in self.passes.items()}
        rows = HEADS // KV_HEADS
        heads = [
            both[name][0][:, :, head * rows : (head + 1) * rows]
            for head, name in enumerate(SETTINGS[layer])
        ]
        return jnp.concatenate(heads, 2), Lockstep({n: after for n, (_, after) in both.items()})

    def finish(self):
        return {name: p.finish() for name, p in self.passes.items()}


@pytest.fixture(scope="module")
def filled():
    return answered(MIXED, run)


@pytest.fixture(scope="module")
def alone():
    """The same answers, and a cache of each setting."""

    @jax.jit
    def lockstep():
        caches = {name: empty(name) for name in ("none", CODES)}
        first, caches = run(PROMPT, Lockstep({name: begin(c) for name, c in caches.items()}))
        decodes = {name: vkq_jax.begin_decode(cache) for name, cache in caches.items()}
        second, caches = run(NEXT[:, :1], Lockstep(decodes))
        return (first, second), caches

    return lockstep()


def test_each_head_does_what_it_does_alone(filled, alone):
    (got, cache), (expected, caches) = filled, alone
    chex.assert_trees_all_close(got, expected, atol=1e-5)
    assert cache.cells == CELLS
    for layer, names in enumerate(SETTINGS):
        views = vkq_jax.heads_of_layer(cache, layer)
        assert sorted(head for heads, _ in views for head in heads) == [0, 1]
        for heads, view in views:
            whole = caches[names[heads[0]]].layer(layer)
            for name in ("key", "value"):
                text = getattr(whole.text, name)[:, list(heads)]
                np.testing.assert_allclose(getattr(view.text, name), text, atol=1e-5)
            for x, y in zip(view.visual[0].dequantize(), whole.visual[0].dequantize(), strict=True):
                np.testing.assert_allclose(x, y[:, list(heads)], atol=1e-5)
    assert cache.position.tolist() == caches["none"].position.tolist()


def test_a_loop_over_traced_layers_is_the_same(filled):
    expected, cache = filled
    got, same = answered(MIXED, scanned)
    chex.assert_trees_all_close(got, expected, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(same, cache)
    for part, other in zip(same.parts, cache.parts, strict=True):
        chex.assert_trees_all_close(part.text, other.text, atol=1e-5)


def test_bytes_are_those_of_the_heads(filled, alone):
    (_, cache), (_, caches) = filled, alone
    sizes = {name: vkq_jax.cache_nbytes(one) for name, one in caches.items()}
    got = vkq_jax.cache_nbytes(cache)
    names = [name for layer in SETTINGS for name in layer]
    assert got.visual * LAYERS * KV_HEADS == sum(sizes[name].visual for name in names)
    assert got.text == sizes["none"].text
    text = repr(cache)
    assert "KV heads: 2 of 8 channels" in text
    assert "layers 0-1, heads 0: 0; 1: 1: minmax-1bit" in text
    assert "layers 2: minmax-1bit" in text


def test_weights_come_for_each_group_of_heads(filled):
    _, cache = filled
    query = jax.random.normal(jax.random.key(7), (2, 1, HEADS, 8))
    with pytest.raises(NotImplementedError, match="heads_of_layer"):
        cache.layer(0)

    def weights(part, place, own):
        found = vkq_jax.attention_weights(own, part.layer(place))
        return jnp.swapaxes(found.joined, 1, 2)[:, :, 0]

    joined = jax.jit(lambda layer: at_layer(cache, layer, query, weights))(jnp.int32(0))
    np.testing.assert_allclose(joined.sum(-1), jnp.ones((2, HEADS)), atol=1e-5)
    for heads, view in vkq_jax.heads_of_layer(cache, 0):
        own = slice(2 * heads[0], 2 * heads[0] + 2)
        expected = vkq_jax.attention_weights(query[:, :, own], view).joined[:, 0]
        np.testing.assert_allclose(joined[:, own], expected, atol=1e-6)


def test_updates_reach_every_part(filled, tmp_path):
    _, cache = filled
    assert {part.cache_length for part in vkq_jax.grow(cache, 12).parts} == {12}
    taken = vkq_jax.take_sequences(cache, [1])
    assert [x.tolist() for x in taken.visual_lengths] == [[7]]
    key = jax.random.normal(jax.random.key(5), (LAYERS, 2, 1, KV_HEADS, 8))
    longer = vkq_jax.append(cache, key, key)
    slot = int(cache.text_length[0])
    for layer in range(LAYERS):
        for heads, view in vkq_jax.heads_of_layer(longer, layer):
            chex.assert_trees_all_equal(view.text.key[0, :, slot], key[layer, 0, 0, list(heads)])
    file = tmp_path / "cache.safetensors"
    vkq_jax.save_cache(file, cache)
    restored = vkq_jax.load_cache(file)
    chex.assert_trees_all_equal(restored, cache)
    assert restored.quant == cache.quant == MIXED.settle(LAYERS, KV_HEADS)
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    structure = json.loads(metadata["structure"])
    heads = structure["fields"]["cells"]["tuple"][1]["fields"]["heads"]
    heads["tuple"][0] = {"tuple": [{"value": 0}]}
    save_file(load_file(file), file, metadata | {"structure": json.dumps(structure)})
    with pytest.raises(ValueError, match=r"expected each head of layer 0 in one group"):
        vkq_jax.load_cache(file)


def test_a_cache_of_one_setting_is_split_into_groups(alone):
    whole = alone[1]["none"]
    apart = split_layers(whole, MIXED.settle(LAYERS, KV_HEADS))
    for layer in range(LAYERS):
        for heads, view in vkq_jax.heads_of_layer(apart, layer):
            expected = whole.layer(layer)
            chex.assert_trees_all_equal(view.text.value, expected.text.value[:, list(heads)])
            chex.assert_trees_all_equal(
                view.visual[0].key.values, expected.visual[0].key.values[:, list(heads)]
            )


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        (vkq_jax.per_head(CODES, {-1: "none"}), {(n, 1): "none" for n in range(LAYERS)}),
        (
            vkq_jax.per_layer(CODES, {("all", 1): "none", 0: CODES}),
            {(1, 1): "none", (2, 1): "none"},
        ),
        (vkq_jax.per_layer("none", {1: CODES, (1, 0): "none"}), {(1, 1): CODES}),
        (
            vkq_jax.per_layer("none", {(range(3), range(1, 2)): CODES}),
            {(n, 1): CODES for n in (0, 1, 2)},
        ),
    ],
)
def test_what_is_named_more_closely_comes_first(quant, expected):
    default = quant.default
    names = {vkq_jax.presets[name]: name for name in ("none", CODES)}
    found = {
        (layer, head): names[own]
        for cells, own in quant.settle(LAYERS, KV_HEADS).groups
        for place, layer in enumerate(cells.layers)
        for head in (range(KV_HEADS) if cells.heads is None else cells.heads[place])
    }
    every = [(layer, head) for layer in range(LAYERS) for head in range(KV_HEADS)]
    assert found == {place: expected.get(place, default) for place in every}


NONE = vkq_jax.presets["none"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vkq_jax.per_head("none", [CODES]), "changes: expected heads and their settings"),
        (lambda: vkq_jax.per_head("none", {"last": CODES}), r"integers or ranges.*'last'"),
        (lambda: vkq_jax.per_head("none", {0: "vkq-1bt"}), "unknown preset 'vkq-1bt'"),
        (lambda: vkq_jax.per_layer("none", {(0, 1, 2): CODES}), r"pairs of them.*\(0, 1, 2\)"),
        (lambda: vkq_jax.per_layer("none", {"all": CODES}), "integers or ranges.*'all'"),
        (lambda: empty(vkq_jax.per_head("none", {2: CODES})), r"heads in \[-2, 2\) .* got 2"),
        (lambda: empty(vkq_jax.per_head("none", {1: CODES, -1: CODES})), "head 1 of all layers is"),
        (
            lambda: empty(vkq_jax.per_head("none", {0: CODES}).settle(LAYERS, 3)),
            "settings of 2 KV heads, got 3",
        ),
        (
            lambda: vkq_jax.LayerGroups(((Cells((0,), ((0,),)), NONE), (Cells((0,)), NONE))),
            "each head of layer 0 in one group",
        ),
        (
            lambda: vkq_jax.LayerGroups(((Cells((0, 1), ((0,),)), NONE),)),
            "equally many heads for each layer",
        ),
        (lambda: vkq_jax.begin_decode(empty(MIXED)).finish(), r"of all 3 layers.*\[0, 1, 2\]"),
        (lambda: vkq_jax.heads_of_layer(empty(MIXED), 3), r"layer must be in \[0, 3\), got 3"),
        (
            lambda: vkq_jax.begin_decode(empty(MIXED)).attend(0, *[jnp.ones((2, 1, 1, 8))] * 3),
            r"key must be \[B, T, K, H\] = \[2, 1, 2, 8\]",
        ),
    ],
)
def test_bad_settings_are_one_clear_error(as_users_run_it, make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert len(str(caught.value)) < 400


def test_finish_asks_for_every_layer(filled):
    step = vkq_jax.begin_decode(vkq_jax.grow(filled[1], 12))
    one = partial(jnp.ones, (2, 1, KV_HEADS, 8))
    _, step = step.attend(0, jnp.ones((2, 1, HEADS, 8)), one(), one())
    with pytest.raises(ValueError, match=r"layers \[1, 2\]"):
        step.finish()
