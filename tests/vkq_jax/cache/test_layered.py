"""Layers with settings of their own: each does what it would do in a cache of its setting."""

import dataclasses
import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vkq_jax
from tests.vkq_jax.passes.test_passes import (
    CODES,
    IS_VISUAL,
    KV_HEADS,
    LAYERS,
    NEXT,
    PROMPT,
    VALID,
    VISUAL,
    empty,
    run,
    scanned,
)
from vkq_jax.settings.layer_groups import Cells

MIXED = vkq_jax.per_layer(CODES, {0: "none", -1: "none"})
SETTINGS = ("none", CODES, "none")


@dataclasses.dataclass
class Lockstep:
    """Passes of one setting each, of which every layer takes the output of its own."""

    passes: dict

    def attend(self, layer, query, key, value):
        both = {name: p.attend(layer, query, key, value) for name, p in self.passes.items()}
        output, _ = both[SETTINGS[layer]]
        return output, Lockstep({name: after for name, (_, after) in both.items()})

    def finish(self):
        return {name: p.finish() for name, p in self.passes.items()}


def begin(cache):
    return vkq_jax.begin_prefill(cache, IS_VISUAL, valid=VALID, num_visual=VISUAL)


@partial(jax.jit, static_argnums=(0, 1))
def answered(quant, loop):
    """Two passes: what the model gives, and the cache."""
    first, cache = loop(PROMPT, begin(empty(quant)))
    second, cache = loop(NEXT[:, :1], vkq_jax.begin_decode(cache))
    return (first, second), cache


@pytest.fixture(scope="module")
def filled():
    return answered(MIXED, run)


def test_each_layer_does_what_it_does_alone(filled):
    @jax.jit
    def lockstep():
        caches = {name: empty(name) for name in set(SETTINGS)}
        first, caches = run(PROMPT, Lockstep({name: begin(c) for name, c in caches.items()}))
        decodes = {name: vkq_jax.begin_decode(cache) for name, cache in caches.items()}
        second, caches = run(NEXT[:, :1], Lockstep(decodes))
        return (first, second), caches

    got, cache = filled
    expected, caches = lockstep()
    chex.assert_trees_all_close(got, expected, atol=1e-5)
    for layer, name in enumerate(SETTINGS):
        chex.assert_trees_all_close(cache.layer(layer), caches[name].layer(layer), atol=1e-5)
    assert cache.position.tolist() == caches["none"].position.tolist()
    assert cache.cells == (Cells((0, 2)), Cells((1,)))


def test_a_loop_over_traced_layers_is_the_same(filled):
    expected, cache = filled
    got, same = answered(MIXED, scanned)
    chex.assert_trees_all_close(got, expected, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(same, cache)
    chex.assert_trees_all_close(same.parts[0], cache.parts[0], atol=1e-5)


def test_bytes_are_those_of_the_layers(filled):
    _, cache = filled
    whole = {name: jax.eval_shape(partial(answered, name, run))[1] for name in set(SETTINGS)}
    sizes = {name: vkq_jax.cache_nbytes(cache) for name, cache in whole.items()}
    got = vkq_jax.cache_nbytes(cache)
    assert got.visual * LAYERS == sum(sizes[name].visual for name in SETTINGS)
    assert got.text == sizes["none"].text
    assert 0 < got.visual_reduction < sizes[CODES].visual_reduction
    text = repr(cache)
    assert "layers 0, 2: none, visual tokens: " in text
    assert "layers 1: minmax-1bit" in text


def test_updates_reach_every_part(filled, tmp_path):
    _, cache = filled
    grown = vkq_jax.grow(cache, 12)
    assert {part.cache_length for part in grown.parts} == {12}
    taken = vkq_jax.take_sequences(grown, [1])
    assert [x.tolist() for x in taken.visual_lengths] == [[7]]
    key = jax.random.normal(jax.random.key(5), (LAYERS, 2, 1, *cache.layer(0).text.key.shape[1::2]))
    longer = vkq_jax.append(cache, key, key)
    assert (longer.num_tokens - cache.num_tokens).tolist() == [1, 1]
    for layer in range(LAYERS):
        slot = int(cache.text_length[0])
        chex.assert_trees_all_equal(longer.layer(layer).text.key[0, :, slot], key[layer, 0, 0])
    shared = vkq_jax.share_visual(taken, 3)
    assert shared.position.tolist() == [13, 13, 13]
    file = tmp_path / "cache.safetensors"
    vkq_jax.save_cache(file, cache)
    restored = vkq_jax.load_cache(file)
    chex.assert_trees_all_equal(restored, cache)
    assert restored.quant == cache.quant == MIXED.settle(LAYERS, KV_HEADS)
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    structure = json.loads(metadata["structure"])
    structure["fields"]["cells"]["tuple"][1]["fields"]["layers"] = {"tuple": [{"value": 2}]}
    save_file(load_file(file), file, metadata | {"structure": json.dumps(structure)})
    with pytest.raises(ValueError, match=r"groups: expected each layer from 0 on in one group"):
        vkq_jax.load_cache(file)


def test_a_cache_of_one_setting_is_split_into_groups():
    _, cache = answered("none", run)
    groups = MIXED.settle(LAYERS, KV_HEADS)
    parts = vkq_jax.cache.layered.split_layers(cache, groups)
    for layer in range(LAYERS):
        chex.assert_trees_all_equal(parts.layer(layer), cache.layer(layer))


def test_equal_settings_are_one_cache():
    same = vkq_jax.per_layer("none", {1: vkq_jax.presets["none"], range(2, 3): "none"})
    assert same.settle(LAYERS, KV_HEADS) == vkq_jax.presets["none"]
    assert isinstance(empty(same), vkq_jax.KVCache)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vkq_jax.per_layer("vkq-1bt", {}), r"unknown preset 'vkq-1bt'.*did you mean"),
        (lambda: vkq_jax.per_layer("none", {0: "vkq-1bt"}), "unknown preset 'vkq-1bt'"),
        (lambda: vkq_jax.per_layer("none", {"first": CODES}), r"integers or ranges.*got 'first'"),
        (lambda: vkq_jax.per_layer("none", {True: CODES}), r"integers or ranges.*got True"),
        (lambda: vkq_jax.per_layer("none", {range(2, 2): CODES}), r"the empty range\(2, 2\)"),
        (lambda: vkq_jax.per_layer("none", [CODES]), r"changes: expected layers and their"),
        (
            lambda: vkq_jax.per_layer("none", {range(2): CODES}).settle(3, 1, without=(0, 1)),
            r"visual tokens, which in this model are \[2\]; settings of layers \[0, 1\] would",
        ),
        (lambda: empty(vkq_jax.per_layer("none", {3: CODES})), r"\[-3, 3\) for a model of 3, got"),
        (lambda: empty(vkq_jax.per_layer("none", {2: CODES, -1: CODES})), "layer 2 is named twice"),
        (
            lambda: vkq_jax.LayerGroups(((Cells((0, 2)), vkq_jax.presets["none"]),)),
            r"one group, got \[0",
        ),
        (
            lambda: empty(vkq_jax.per_layer("none", {0: CODES}).settle(2, KV_HEADS)),
            r"settings of 3 layers, got 2",
        ),
        (lambda: vkq_jax.begin_decode(empty(MIXED)).finish(), r"of all 3 layers.*\[0, 1, 2\]"),
        (
            lambda: jax.eval_shape(lambda i: empty(MIXED).layer(i).text.key, jnp.int32(0)),
            "plain integer for layers that differ",
        ),
    ],
)
def test_bad_settings_are_one_clear_error(as_users_run_it, make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert len(str(caught.value)) < 400
