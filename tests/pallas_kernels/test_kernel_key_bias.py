"""The fused kernel where keys are coded without their bias: emulated on the CPU, by the oracle."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels.attention import mosaic_gpu, support
from pallas_kernels.attention.body.slot_entries import SlotSpec
from pallas_kernels.attention.description import describe
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.launch import program_of
from tests.pallas_kernels import kernel_cases
from tests.pallas_kernels.test_dictionary_kernel import CODES as DICTIONARIES
from tests.support.caches import Shape, oracle, random_layer, random_starts, relative_error
from tests.support.compiling import lower_to_cuda, ptxas
from vkq_jax import KeyBias
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.codes.token_classes import TokenClass, assign_classes

VISUAL = (300, (300, 33))
CODES = kernel_cases.CODES | DICTIONARIES

# head_dim, query heads per KV head, codes, tuning, window, axes of known positions (0: not known)
SLOW = pytest.mark.ci  # emulating many planes, or centroids, takes seconds each
CASES = [
    (128, 1, "signs", TuningConfig(4, 2), True, 3),
    (96, 3, "signs", TuningConfig(4, 2, 2, queries=3), False, 1),
    (64, 7, "levels", TuningConfig(4, 2, queries=6), False, 3),
    (64, 1, "levels, calibrated", TuningConfig(4, 2), False, 0),
    (128, 3, "signs, calibrated", TuningConfig(4, 2, 2, queries=3), True, 3),
    (64, 1, "vkq-1bit", TuningConfig(4, 2), True, 3),
    pytest.param(64, 5, "signs", TuningConfig(4, 2, queries=5), True, 0, marks=SLOW),
    pytest.param(128, 3, "vkq-2bit", TuningConfig(4, 2, 2, queries=3), False, 1, marks=SLOW),
    pytest.param(64, 4, "a codebook", TuningConfig(4, 2, queries=4), False, 3, marks=SLOW),
    pytest.param(64, 1, "learned", None, False, 3, marks=SLOW),
]


def layer_of(head_dim, per_kv_head, codes, axes=0):
    shape = Shape(head_dim=head_dim, num_heads=2 * per_kv_head, visual=(VISUAL,))
    query, layer = random_layer(shape, CODES[codes])
    rng = np.random.default_rng(3)
    half = head_dim // 2
    bias = KeyBias(
        bias=jnp.asarray(2 * rng.normal(size=(2, head_dim)), jnp.float32),
        frequencies=jnp.asarray(rng.uniform(0.01, 1.0, half), jnp.float32),
        axis_of_pair=None if axes == 1 else tuple(rng.integers(0, 3, half).tolist()),
    )
    if axes:
        bias = bias.with_waves(90, VISUAL[0])
        assert bias.waves is not None
    last = (2, VISUAL[0]) if axes == 1 else (2, VISUAL[0], 3)
    position = jnp.asarray(rng.integers(0, 90, last), jnp.int32)
    (bank,) = layer.visual
    bank = dataclasses.replace(bank, position=position)
    return query, dataclasses.replace(layer, visual=(bank,), key_bias=bias)


@pytest.mark.parametrize(
    ("head_dim", "per_kv_head", "codes", "tuning", "windowed", "axes"),
    CASES,
    ids=str,
)
def test_kernel_equals_the_oracle(head_dim, per_kv_head, codes, tuning, windowed, axes):
    query, layer = layer_of(head_dim, per_kv_head, codes, axes)
    starts = random_starts(query, layer) if windowed else None
    kernel_cases.check(query, layer, tuning, starts=starts)


def test_the_bias_is_that_of_the_layer():
    query, layer = layer_of(64, 1, "signs")
    without = dataclasses.replace(layer, key_bias=None)
    (bank,) = layer.visual
    cache = kernel_cases.stacked(without, 2)
    own = jnp.stack([jnp.zeros_like(layer.key_bias.bias), layer.key_bias.bias])
    cache = dataclasses.replace(
        cache,
        visual=(dataclasses.replace(cache.visual[0], position=bank.position),),
        key_bias=dataclasses.replace(layer.key_bias, bias=own),
    )
    like = jax.ShapeDtypeStruct(query.shape, query.dtype)
    assert "share of the key bias in scores: by xla" in describe(cache, like)
    run = jax.jit(
        lambda query, cache, index: mosaic_gpu.attend_layer(
            query, cache, index, launch=kernel_cases.emulated_launch
        )
    )
    got = run(query, cache, jnp.int32(1))
    expected = jax.jit(kernel_cases.attend)(query, cache.layer(1))
    np.testing.assert_allclose(got.output, expected.output, atol=1e-5)
    other = run(query, cache, jnp.int32(0))
    assert jnp.abs(got.output - other.output).max() > 0.1


@pytest.mark.parametrize("codes", ["signs", pytest.param("vkq-1bit", marks=SLOW)])
def test_mapped_queries_and_banks(codes):
    query, layer = layer_of(64, 1, codes, axes=3)

    both = jnp.stack([query, 0.5 * query])
    expected = jax.vmap(lambda q: kernel_cases.attend(q, layer))(both)
    banks = jax.tree.map(lambda x: jnp.stack([x, x]), layer.visual)

    def attend(q, banks):
        return kernel_cases.attend(q, dataclasses.replace(layer, visual=banks))

    got = jax.vmap(attend)(both, banks)
    for one, other, q in zip(got.output, expected.output, both, strict=True):
        exact = oracle(q, layer).output
        assert relative_error(one, exact) < 3e-4
        assert relative_error(other, exact) < 3e-4


def test_a_launch_and_its_entries_are_assembled(tmp_path):
    found = []

    def launch(spec, operands):
        found.append((program_of(spec), operands))
        return tuple(jnp.zeros(x.shape, x.dtype) for x in found[-1][0].results.values())

    query, layer = layer_of(64, 3, "vkq-1bit", axes=3)
    jax.eval_shape(lambda: mosaic_gpu.attend_cache(query, layer, launch=launch))
    assert len(found) == 2
    for program, operands in found:
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in operands.items()}
        assert "mosaic_gpu" in lower_to_cuda(program, shapes)
        if shutil.which("ptxas"):
            assert "Used" in ptxas(program, shapes, tmp_path, ("sm_80", "sm_90a", "sm_120a"))


def test_entries_are_put_in_the_order_of_slots():
    classes = (TokenClass(0.3, 2), TokenClass(0.1, 1), TokenClass(0.6, 0))
    count, lengths = 9000, jnp.asarray([9000, 33, 0], jnp.int32)  # more than a round of the threads
    valid = jnp.arange(count)[None] < lengths[:, None]
    per_head = jnp.broadcast_to(valid[None, :, None], (2, 3, 2, count))
    energy = jnp.asarray(np.random.default_rng(0).random((2, 3, 2, count)), jnp.float32)
    class_map = assign_classes(energy, per_head, classes)
    numbers = jnp.asarray(np.random.default_rng(1).integers(1, 99, (3, count)), jnp.int32)
    blocks = [-(-slots // 256) for slots in class_map.capacities]
    spec = SlotSpec(1, 2, 3, 2, count, tuple(256 * n for n in blocks))
    operands = {
        "class_map": class_map.words.reshape(12, -1),
        "length": lengths,
        "number": numbers,
        "layer": jnp.ones(1, jnp.int32),
    }
    (entry,) = kernel_cases.emulated_launch(spec, operands)
    found = jnp.split(entry, np.cumsum(spec.slots)[:-1], -1)
    of_layer = jax.tree.map(lambda x: x[1], class_map)
    key = DenseTensor(jnp.zeros((3, 2, count, 0)))
    bank = VisualBank(key, key, lengths, class_map=of_layer)
    expected = jnp.split(bank.tokens_in_slots(numbers), np.cumsum(class_map.capacities)[:-1], -1)
    for got, own in zip(found, expected, strict=True):
        got = got.reshape(3, 2, -1)
        np.testing.assert_array_equal(got[..., : own.shape[-1]], own)
        assert not got[..., own.shape[-1] :].any()


def test_what_is_not_covered_says_so():
    *_, layer = layer_of(64, 1, "signs")
    said = support.unsupported_reason(layer, 30.0)
    assert said == "logits soft-cap together with a key bias"
    assert support.unsupported_reason(layer) is None
    *_, uncoded = layer_of(64, 1, "dense")
    assert support.unsupported_reason(uncoded) == "a key bias beside an uncoded bank"


def test_a_cache_that_a_bias_may_make_slower_than_bfloat16_says_so(monkeypatch):
    *_, layer = layer_of(64, 1, "signs", axes=1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(support, "device_reason", lambda: None)
    monkeypatch.setattr(support, "untried_reason", lambda: None)
    assert pallas_kernels.slowdown_reason(layer).endswith(
        "the share of the keys' bias in each score at all positions"
    )
    *_, of_several_axes = layer_of(64, 1, "signs", axes=3)
    assert pallas_kernels.slowdown_reason(of_several_axes) is None
    assert pallas_kernels.slowdown_reason(dataclasses.replace(layer, key_bias=None)) is None
