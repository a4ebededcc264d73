"""Banks in parts: whole again they are what they were, and attention to all parts is attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
from tests.support.caches import Shape, attend, random_layer, random_starts, relative_error
from vkq_jax.attention import post_scaled as attention
from vkq_jax.bits import packing
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.sharding.bank_parts import (
    TextPart,
    _PartMap,
    join_banks,
    part_of_cache,
    parts_to_kernel_layout,
    split_bank,
)
from vkq_jax.sharding.bank_parts import take_part as take

SHAPE = Shape(text=(5, 9), visual=((70, (70, 33)),))
PARTS = 3
LEARNED = vkq_jax.DictionaryCodes(learned=True, codebook=16, metric=True)
CODES = {
    "kivi-2bit": vkq_jax.resolve("kivi-2bit"),
    "vidkv-1.5bit": vkq_jax.resolve("vidkv-1.5bit"),
    "signs in groups": vkq_jax.KVQuantConfig(
        vkq_jax.SignCodes(group_size=8, beta=0.5), vkq_jax.SignCodes()
    ),
    "learned": vkq_jax.KVQuantConfig(LEARNED, LEARNED),
}


@functools.cache
def one_layer_cache(name, shape=SHAPE):
    """Queries, and a cache of one layer."""
    quant = CODES.get(name) or vkq_jax.resolve(name)
    query, layer = random_layer(shape, quant)
    stack = functools.partial(jax.tree.map, lambda x: x[None])
    (bank,) = layer.visual
    parts = {side: stack(getattr(bank, side)) for side in ("key", "value", "class_map")}
    bank = dataclasses.replace(bank, **parts)
    text = dataclasses.replace(layer.text, key=layer.text.key[None], value=layer.text.value[None])
    none = jnp.zeros(SHAPE.batch, jnp.int32)
    return query, KVCache((bank,), text, none, none, quant=quant, tables=stack(layer.tables))


@functools.partial(jax.jit, static_argnums=1)
def in_parts(cache, to_kernel_layout=None):
    (bank,) = cache.visual
    bank = split_bank(bank, PARTS)
    if to_kernel_layout is not None:
        bank = parts_to_kernel_layout(bank, range(PARTS), 3, to_kernel_layout)
    return dataclasses.replace(cache, visual=(bank,))


def text_part(text, number):
    size = text.cache_length // PARTS
    first = jnp.int32(number * size)
    key, value = (
        jax.lax.dynamic_slice_in_dim(x, first, size, axis=3) for x in (text.key, text.value)
    )
    return TextPart(key, value, text.length, first=first)


@jax.jit
def attend_in_parts(query, cache, starts):
    """Attention to each part, merged."""
    visible = jnp.broadcast_to(cache.text.length[:, None], query.shape[:2])
    (bank,) = cache.visual

    def attend_one(number):
        own = dataclasses.replace(
            cache, visual=(take(bank, number, 3),), text=text_part(cache.text, number)
        )
        own, seen, begin = part_of_cache(own, number, visible, starts)
        return attention.attend_cache(query, own.layer(0), visible_text=seen, starts=begin)

    found = jax.vmap(attend_one)(jnp.arange(PARTS, dtype=jnp.int32))
    parts = (jax.tree.map(lambda x, n=number: x[n], found) for number in range(PARTS))
    return functools.reduce(attention.merge, parts)


@pytest.mark.parametrize("name", CODES)
def test_parts_make_up_the_whole(name):
    _, cache = one_layer_cache(name)
    split = in_parts(cache)
    joined = jax.jit(join_banks)(split)
    assert jax.tree.structure(joined) == jax.tree.structure(cache)
    jax.tree.map(np.testing.assert_array_equal, joined, cache)
    whole, parts = vkq_jax.cache_nbytes(cache), vkq_jax.cache_nbytes(split)
    assert parts.visual_full_precision == whole.visual_full_precision
    # Parts of 24 positions are filled up, by groups of 32 to 32.
    assert whole.visual_codes <= parts.visual_codes <= 1.4 * whole.visual_codes


@pytest.mark.parametrize("name", ["vkq-1bit", "kivi-2bit"])
def test_attention_to_all_parts_is_attention(name):
    query, cache = one_layer_cache(name)
    starts = random_starts(query, cache)
    expected = attend(query, cache.layer(0), starts=starts)
    got = attend_in_parts(query, in_parts(cache), starts)
    assert relative_error(got.output, expected.output) < 1e-5
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=1e-5)


@pytest.mark.parametrize("name", ["vkq-1bit", "minmax-2bit", "signs-1bit"])
def test_parts_have_the_layout_of_the_kernel(name):
    shape = dataclasses.replace(SHAPE, head_dim=64, num_heads=1, num_kv_heads=1)
    _, cache = one_layer_cache(name, shape)
    split = in_parts(cache, pallas_kernels.tile)
    assert type(split.visual[0].key.parts).__name__.startswith("Tiled")
    assert pallas_kernels.explain(split) == pallas_kernels.explain(cache)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(join_banks)(split), cache)


def test_each_position_has_a_slot_in_one_part():
    sizes = (3, 5, 4)  # slots of each class in a part
    number = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], (9, 15, 12, 4)))
    valid = number < 3
    words = packing.pack(jnp.asarray(np.where(valid, number, 0)[None], jnp.uint32), 2)
    rank = np.array([(number[:i] == number[i]).sum() for i in range(number.size)])
    for part in range(PARTS):
        own = _PartMap(
            words, packing.pack(jnp.asarray(valid)[None], 1), part=jnp.asarray([part], jnp.int32),
            num_positions=number.size, capacities=sizes,
        )  # fmt: skip
        expected = np.full(number.size, sum(sizes))
        for c, (size, offset) in enumerate(zip(sizes, (0, 3, 8), strict=True)):
            here = (number == c) & (rank // size == part)
            expected[here] = offset + rank[here] % size
        np.testing.assert_array_equal(own.slots_of_positions()[0], expected)


def test_new_text_goes_to_the_part_that_has_its_slot():
    _, cache = one_layer_cache("signs-1bit")
    text = dataclasses.replace(cache.text, length=jnp.asarray([2, 5], jnp.int32))
    rng = np.random.default_rng(0)
    key, value = jnp.asarray(rng.normal(size=(2, 2, 4, 2, 16)), jnp.float32)
    valid = jnp.asarray([[True, False, True, True], [True] * 4])
    whole = text.write(0, key, value, valid)
    parts = [text_part(text, number).write(0, key, value, valid) for number in range(PARTS)]
    for side in ("key", "value"):
        joined = jnp.concatenate([getattr(part, side) for part in parts], axis=3)
        np.testing.assert_array_equal(joined, getattr(whole, side))
