"""The fused kernel on hard and empty inputs, emulated on the CPU."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from pallas_kernels.attention import mosaic_gpu, support
from pallas_kernels.attention.body import s8_queries
from pallas_kernels.attention.launch import emulated_launch
from pallas_kernels.isa.emulated_operations import EmulatedOperations
from tests.pallas_kernels.kernel_cases import (
    CODES,
    attend,
    check,
    layer_of,
    stacked,
)
from tests.support.caches import (
    Shape,
    oracle,
    random_layer,
    random_starts,
    relative_error,
)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_a_text_bank_without_room(head_dim):
    shape = Shape(
        head_dim=head_dim, num_heads=2, cache_length=0, text=(0, 0), visual=((70, (70, 0)),)
    )
    query, layer = random_layer(shape, CODES["signs"])
    cache = stacked(layer, 2)
    got = mosaic_gpu.attend_layer(query, cache, 1, launch=emulated_launch)
    expected = oracle(query, cache.layer(1))
    assert relative_error(got.output, expected.output) < 3e-4
    assert not got.output[1].any()


def test_a_cache_without_room():
    layer = random_layer(Shape(head_dim=64, cache_length=0, text=(0, 0)), CODES["signs"])[1]
    empty = dataclasses.replace(stacked(layer, 1), visual=())
    assert support.unsupported_reason(empty) == "the cache has no room for anything"


@pytest.mark.parametrize("head_dim", [64, pytest.param(96, marks=pytest.mark.ci)])
def test_two_banks_and_several_queries(head_dim):
    shape = Shape(
        head_dim=head_dim, num_queries=3, visual=((300, (300, 1)), (256, (0, 256))), num_heads=2
    )
    check(*random_layer(shape, CODES["signs"]))
    check(*random_layer(shape, CODES["signs"]), soft_cap=5.0)
    # One range over both.
    query, layer = random_layer(shape, CODES["rotated signs, score bias, calibrated"])
    check(query, layer)
    check(query, layer, starts=random_starts(query, layer))


@pytest.mark.parametrize("codes", ["levels", "signs"])
@pytest.mark.parametrize("case", ["peaked", "sink", "one channel rules", "constant", "huge"])
@pytest.mark.parametrize("heads", [1, pytest.param(4, marks=pytest.mark.ci), 8])
def test_hard_inputs(case, codes, heads):
    rng = np.random.default_rng(1)
    key, value = rng.normal(size=(2, 2, 1, 600, 128)).astype(np.float32)
    query = rng.normal(size=(2, 1, heads, 128)).astype(np.float32)
    match case:
        case "peaked":
            query *= 8
        case "sink":
            key[:, :, 3] = 4 * query[:, :, 0]
        case "one channel rules":
            key[..., 5] *= 300
            query[..., 5] /= 30
        case "constant":
            key[:], value[..., :64] = 1.5, -2.0
        case "huge":
            key *= 1e4
            query *= 1e-4
            value *= 1e6
    text = random_layer(Shape(head_dim=128, num_heads=1, num_kv_heads=1), CODES[codes])[1].text
    text = dataclasses.replace(text, length=jnp.zeros(2, jnp.int32))
    bank = vkq_jax.VisualBank(
        vkq_jax.quantize(jnp.asarray(key), CODES[codes].key),
        vkq_jax.quantize(jnp.asarray(value), CODES[codes].value),
        jnp.asarray([600, 257], jnp.int32),
    )
    layer = vkq_jax.cache.kv_cache.LayerCache((bank,), text, quant=CODES[codes])
    check(jnp.asarray(query), layer)


@pytest.mark.parametrize(("heads", "saved"), [(4, 1 / 2), (8, 1 / 3)])
def test_flat_queries_are_shortened(heads, saved, monkeypatch):
    """Without their lowest digits they take fewer products; steep ones keep them."""
    calls = []
    product = EmulatedOperations.mma_u8_s8

    def counted(self, *operands):
        calls.append(1)
        return product(self, *operands)

    monkeypatch.setattr(EmulatedOperations, "mma_u8_s8", counted)

    def products(query, layer):
        calls.clear()
        check(query, layer)
        return len(calls)

    shape = Shape(head_dim=128, num_heads=heads, num_kv_heads=1, visual=((600, (600, 257)),))
    query, layer = random_layer(shape, CODES["levels"])
    assert products(query / 16, layer) == pytest.approx((1 - saved) * products(8 * query, layer))
    query, layer = random_layer(shape, CODES["signs"])
    assert products(query / 16, layer) == products(8 * query, layer)


def test_shortened_flat_queries_give_nearly_the_same(monkeypatch):
    query, layer, tuning = layer_of("eight query heads, small heads", "levels")
    outputs = []
    for allowed in (0.0, np.inf):
        monkeypatch.setattr(s8_queries, "_LOST_VARIANCE", allowed)
        outputs.append(np.asarray(attend(query / 16, layer, tuning=tuning).output))
    assert 1e-7 < relative_error(*outputs) < 1e-4


def test_what_lies_behind_the_length_changes_nothing():
    query, layer, tuning = layer_of("one query head", "signs")
    bank = pallas_kernels.tile(layer.visual[0])
    row, behind = 1, slice(256 * 4, None)  # 33 positions are visible: part of the first block
    other = dataclasses.replace(
        bank,
        key=dataclasses.replace(
            bank.key, packed=bank.key.packed.at[row, :, behind].set(0xFFFFFFFF)
        ),
        value=dataclasses.replace(
            bank.value, token_scale=bank.value.token_scale.at[row, :, 1:].set(0xFFFFFFFF)
        ),
    )
    first, second = (
        attend(query, dataclasses.replace(layer, visual=(b,)), tuning=tuning).output
        for b in (bank, other)
    )
    np.testing.assert_array_equal(first, second)


def test_a_query_that_sees_nothing_gives_zero():
    shape = Shape(head_dim=64, text=(0, 3), visual=((8, (0, 8)),))
    query, layer = random_layer(shape, CODES["signs"])
    attended = attend(query, layer)
    assert not attended.output[0].any()
    assert np.isneginf(attended.logsumexp[0]).all()
    assert np.isfinite(attended.output).all()
