"""Dictionary codes in the fused kernel: emulated on the CPU against the oracle, lowered to CUDA."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from pallas_kernels import TiledDictionary
from pallas_kernels.attention import mosaic_gpu, regions, support
from pallas_kernels.attention.description import describe
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.launch import emulated_launch, program_of
from pallas_kernels.layout.tiled import untileable_bank_reason
from tests.support.caches import (
    Shape,
    in_bfloat16,
    oracle,
    random_layer,
    random_starts,
    relative_error,
)
from tests.support.compiling import lower_to_cuda, needs_ptxas, ptxas
from vkq_jax import Dense, DictionaryCodes, KVQuantConfig, TokenClass
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.settings.presets import calibrated_presets


def hadamard(*classes, **settings):
    return DictionaryCodes(tuple(TokenClass(*c) for c in classes), **settings)


def both(codes):
    return KVQuantConfig(codes, codes)


CODES = {
    "vkq-half": vkq_jax.presets["vkq-half"],
    "vkq-1bit": vkq_jax.presets["vkq-1bit"],
    "vkq-2bit": vkq_jax.presets["vkq-2bit"],
    "sides with planes and centroids of their own": KVQuantConfig(
        hadamard((0.3, 2), (0.4, 1), (0.3, 0), centres=4), hadamard((0.3, 1), (0.4, 3), (0.3, 0))
    ),
    "two classes that are counted": both(hadamard((0.3, 0), (0.3, 1), (0.4, 0), centres=2)),
    "keys in units of their channels": KVQuantConfig(
        hadamard((0.3, 2), (0.4, 1), (0.3, 0), centres=3, smoothing=0.5, scale="between"),
        hadamard((0.3, 2), (0.4, 1), (0.3, 0), centres=3),
    ),
    "a codebook": calibrated_presets["vkq-1bit"][0],
    "a codebook of keys, no centre": KVQuantConfig(
        hadamard((0.5, 4), (0.5, 0), codebook=16, centres=0),
        hadamard((0.5, 2), (0.5, 0), centres=3),
    ),
    "a codebook of values": KVQuantConfig(
        hadamard((0.5, 1), (0.5, 0), centres=2), hadamard((0.5, 4), (0.5, 0), codebook=256)
    ),
    "only centroids": both(hadamard((1.0, 0), centres=4)),
    "learned": calibrated_presets["vkq-half"][0],
    "learned, steps of its own": calibrated_presets["vkq-2bit"][1],
    "learned, two classes, no codebook": both(
        hadamard((0.3, 1.5), (0.4, 1), (0.3, 0), learned=True, scale="norm")
    ),
    "learned, no codebook": both(hadamard((0.9, 1.5), (0.1, 0), learned=True, scale="norm")),
}
attend = jax.jit(
    functools.partial(mosaic_gpu.attend_cache, launch=emulated_launch),
    static_argnames=("tuning", "logits_soft_cap"),
)
tile = jax.jit(pallas_kernels.tile)

# head_dim, query heads per KV head, codes, tuning, soft cap, window
CASES = [
    (128, 1, "vkq-1bit", TuningConfig(4, 2), None, False),
    (64, 1, "vkq-2bit", TuningConfig(4, 1, 2), 5.0, True),
    (128, 1, "sides with planes and centroids of their own", None, 5.0, True),
    (128, 4, "vkq-1bit", TuningConfig(4, 2, 2, queries=4), None, True),
    (
        128,
        7,
        "sides with planes and centroids of their own",
        TuningConfig(4, 4, queries=7),
        None,
        False,
    ),
    (64, 2, "two classes that are counted", None, None, True),
    (64, 1, "only centroids", TuningConfig(4, 2), 5.0, True),
    (256, 1, "vkq-1bit", TuningConfig(4, 2), None, False),
    (128, 1, "keys in units of their channels", TuningConfig(4, 2), 5.0, True),
    (64, 4, "keys in units of their channels", TuningConfig(4, 2, 1, 4), None, False),
    (128, 4, "a codebook", TuningConfig(4, 2, 2, 4), None, True),
    (64, 3, "a codebook of keys, no centre", TuningConfig(4, 4, 1, 3), 5.0, False),
    (64, 7, "a codebook of values", TuningConfig(4, 2, 1, 7), None, False),
    (128, 1, "learned, steps of its own", TuningConfig(4, 2, 2), 5.0, False),
    (128, 4, "learned", TuningConfig(4, 2, 1, 4), None, False),
    (80, 2, "learned, no codebook", None, 5.0, True),
]


SMALL = Shape(head_dim=64, num_heads=1, num_kv_heads=1)


@functools.cache
def layer_of(head_dim, per_kv_head, codes, length=600):
    shape = Shape(
        head_dim=head_dim,
        num_heads=per_kv_head,
        num_kv_heads=1,
        visual=((length, (length, length // 3)),),
    )
    return in_bfloat16(random_layer(shape, CODES[codes]))


def check(got, expected):
    assert np.isfinite(got.output).all()
    assert relative_error(got.output, expected.output) < 3e-4
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=3e-5, atol=3e-4)


@pytest.mark.parametrize(
    ("head_dim", "per_kv_head", "codes", "tuning", "soft_cap", "windowed"), CASES
)
def test_equals_the_oracle(head_dim, per_kv_head, codes, tuning, soft_cap, windowed):
    query, layer = layer_of(head_dim, per_kv_head, codes)
    options = {
        "starts": random_starts(query, layer) if windowed else None,
        "logits_soft_cap": soft_cap,
    }
    check(attend(query, layer, tuning=tuning, **options), oracle(query, layer, **options))


def test_classes_that_no_token_falls_into():
    query, layer = layer_of(64, 1, "vkq-half", 2)
    assert tile(layer.visual[0]).key.capacities == (0, 1, 1)
    check(attend(query, layer), oracle(query, layer))


def test_whole_blocks_of_each_class():
    """Planes are a loop of the kernel's, and classes are divided: there are blocks for all."""
    query, layer = layer_of(64, 1, "a codebook", 2900)
    starts = random_starts(query, layer)
    got = attend(query, layer, tuning=TuningConfig(4, 1), starts=starts)
    check(got, oracle(query, layer, starts=starts))


@pytest.mark.ci
@pytest.mark.parametrize("codes", ["vkq-1bit", "a codebook"])
def test_a_warp_takes_several_blocks_of_each_class(codes):
    """Several queries take blocks in a row, whose planes take turns in two slots."""
    query, layer = layer_of(64, 2, codes, 1500)
    starts = random_starts(query, layer)
    got = attend(query, layer, tuning=TuningConfig(4, 1, 1, 2), starts=starts)
    check(got, oracle(query, layer, starts=starts))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("head_dim", "codes", "tuning", "length"),
    [
        (128, "learned", TuningConfig(4, 1, 2, 3), 1500),
        (128, "learned", TuningConfig(8, 8, 1, 3), 2500),
        (128, "learned", TuningConfig(4, 4, 1, 3), 3),
        (80, "learned, two classes, no codebook", TuningConfig(4, 2, 1, 3), 900),
        (64, "learned", TuningConfig(4, 2, 1, 3), 600),  # small planes: one part after the other
    ],
)
def test_parts_with_dictionaries_of_their_own(head_dim, codes, tuning, length):
    """A warp takes blocks of all parts, of some, or of none."""
    query, layer = layer_of(head_dim, 3, codes, length)
    starts = random_starts(query, layer)
    got = attend(query, layer, tuning=tuning, starts=starts)
    check(got, oracle(query, layer, starts=starts))


@pytest.mark.ci
def test_tokens_without_bits_are_counted_by_pair_of_centroids(monkeypatch):
    """Here of a short bank, too."""
    monkeypatch.setattr(regions, "_FEWEST", 1)
    query, layer = layer_of(128, 3, "learned", 1200)
    tuning = TuningConfig(8, 8, 1, 3)
    check(attend(query, layer, tuning=tuning), oracle(query, layer))


def test_a_codebook_needs_its_tables():
    query, layer = layer_of(64, 1, "a codebook", 2900)
    with pytest.raises(ValueError, match="cannot be read without them: pass the same `tables`"):
        attend(query, dataclasses.replace(layer, tables=None))


def test_a_layer_of_a_cache_takes_one_launch():
    """Its text bank in it, a codebook of the model's; mapped queries join it."""
    query, layer = layer_of(64, 2, "a codebook of keys, no centre", 70)
    cache, specs = stacked(layer), []

    def launch(spec, operands):
        specs.append(spec)
        return emulated_launch(spec, operands)

    def run(query):
        return mosaic_gpu.attend_layer(query, cache, 1, launch=launch)

    queries = jnp.stack([query, -query])
    got = jax.jit(jax.vmap(run))(queries)
    assert specs[-1].queries == 4
    assert len(specs[-1].classes) == 2
    for number, one in enumerate(queries):
        check(jax.tree.map(lambda x: x[number], got), oracle(one, cache.layer(1)))  # noqa: B023


def stacked(layer):
    """A cache of two layers, that one the second, its text in bfloat16."""

    def stack(tree):
        return jax.tree.map(lambda x: jnp.stack([jnp.zeros_like(x), x]), tree)

    text = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (layer.text.key, layer.text.value))
    (bank,) = map(tile, layer.visual)
    none = jnp.zeros_like(layer.text.length)
    return vkq_jax.KVCache(
        (
            VisualBank(
                stack(bank.key), stack(bank.value), bank.length, class_map=stack(bank.class_map)
            ),
        ),
        vkq_jax.TextBank(*stack(text), layer.text.length),
        position=none,
        calibration_skipped=none,
        quant=layer.quant,
        tables=stack(layer.tables),
    )


@pytest.mark.parametrize(
    ("head_dim", "codes"),
    [(64, "vkq-2bit"), (256, "a codebook"), (128, "learned, steps of its own")],
)
def test_a_tiled_bank_is_what_it_was_made_from(head_dim, codes):
    (bank,) = layer_of(head_dim, 1, codes)[1].visual
    tiled = tile(bank)
    assert isinstance(tiled.key, TiledDictionary)
    for side in ("key", "value"):
        got, expected = jax.jit(TiledDictionary.plain)(getattr(tiled, side)), getattr(bank, side)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        shapes = jax.eval_shape(lambda: getattr(tiled, side))  # noqa: B023  # called at once
        assert shapes.num_elements() == expected.num_elements()
    tiled.key.check()
    broken = dataclasses.replace(tiled.key, taken=tiled.key.taken + 300)
    with pytest.raises(ValueError, match="taken of class 0 must be in"):
        broken.check()


def test_xla_reads_a_tiled_bank():
    query, layer = layer_of(64, 2, "vkq-1bit", 70)
    tiled = dataclasses.replace(layer, visual=tuple(map(tile, layer.visual)))
    got, expected = (
        jax.jit(vkq_jax.attention.post_scaled.attend_cache)(query, x) for x in (tiled, layer)
    )
    np.testing.assert_array_equal(got.output, expected.output)
    (got,), (expected,) = (
        [jax.jit(VisualBank.dequantize)(bank) for bank in x.visual] for x in (tiled, layer)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize(
    ("quant", "head_dim", "reason"),
    [
        (both(hadamard((1.0, 7), learned=True)), 64, "keys: 448 virtual channels in a class"),
        (both(hadamard((1.0, 0), learned=True)), 64, "keys: dictionaries of the model's tables w"),
        (
            both(hadamard((1.0, 1), learned=True, centres=3)),
            64,
            "keys: centroids of an image beside dictionaries",
        ),
        (
            KVQuantConfig(hadamard((1.0, 1), learned=True), hadamard((1.0, 1))),
            64,
            "dictionaries of the model's tables for only one of keys and values",
        ),
        (CODES["vkq-1bit"], 96, "keys: dictionary codes of head_dim 96"),
        (both(hadamard((1.0, 1), centres=5)), 64, "keys: 5 centroids of an image, more than 4"),
        (both(hadamard((1.0, 5))), 64, "keys: 5 planes in a class, more than 4"),
        (both(hadamard((1.0, 1), table_dtype="float32")), 64, "keys: tables in float32"),
        (both(hadamard((1.0, 2.5))), 64, "keys: a class of tokens with half a plane"),
        (both(hadamard((1.0, 1), smoothing=0.5)), 64, "values: channels in units of their own"),
        (
            KVQuantConfig(hadamard((0.5, 1), (0.5, 0)), hadamard((0.5, 1), (0.5, 1))),
            64,
            "a class of tokens with bits for only one",
        ),
        (
            dataclasses.replace(CODES["vkq-1bit"], calibration=vkq_jax.ScoreCalibration()),
            64,
            "score calibration of dictionary codes",
        ),
    ],
)
def test_what_is_not_covered_is_said(quant, head_dim, reason):
    shape = dataclasses.replace(SMALL, head_dim=head_dim)
    layer = jax.eval_shape(lambda: random_layer(shape, quant)[1])
    assert support.unsupported_reason(layer).startswith(reason)


@pytest.mark.parametrize("name", vkq_jax.presets)
def test_each_preset_is_refused_or_traced(name):
    query, layer = jax.eval_shape(lambda: random_layer(SMALL, vkq_jax.presets[name]))
    if support.unsupported_reason(layer) is None:
        attended = jax.eval_shape(mosaic_gpu.attend_cache, query, layer)
        assert attended.output.shape == query.shape


def test_a_bank_without_its_classes_is_not_covered():
    (bank,) = layer_of(64, 2, "vkq-1bit", 70)[1].visual
    alone = dataclasses.replace(bank, class_map=None)
    assert "not in those of the same classes" in untileable_bank_reason(alone)


def test_explain_says_what_is_launched():
    query, layer = layer_of(64, 2, "vkq-1bit", 70)
    assert support.unsupported_reason(layer) is None
    (line,) = describe(stacked(layer), jax.ShapeDtypeStruct(query.shape, query.dtype))
    parts = "17 packed in 2 planes, 35 packed in 1 plane, 18 counted by centroid, 9 dense (text)"
    assert line.startswith(f"one launch over {parts}:")
    query, layer = layer_of(80, 2, "learned, no codebook")
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    first, *others = describe(stacked(layer), shape)
    assert "540 packed in 128 virtual channels, 60 counted by centroid:" in first
    assert "products of queries and of results with the model's tables: by xla" in others
    query, layer = layer_of(128, 4, "learned")
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    first, *others = describe(stacked(layer), shape)
    assert "9 dense (text)" in first
    assert "one launch each, before and behind" in others[0]


def test_a_coded_cache_that_is_slower_than_bfloat16_says_so(monkeypatch):
    """Where a GPU has to take it through XLA: one line, of `explain` and of `vkq generate`."""
    shape = Shape(head_dim=64, num_heads=1, num_kv_heads=1)
    halved, covered, dense = (
        jax.eval_shape(lambda quant=quant: random_layer(shape, quant)[1])
        for quant in (both(hadamard((1.0, 1.5))), CODES["vkq-1bit"], both(Dense()))
    )
    assert pallas_kernels.slowdown_reason(halved) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(support, "device_reason", lambda: None)
    line = pallas_kernels.slowdown_reason(halved)
    assert line.endswith("keys: a class of tokens with half a plane")
    assert pallas_kernels.explain(halved).splitlines()[-1] == f"warning: {line}"
    assert pallas_kernels.slowdown_reason(covered) is None
    assert pallas_kernels.slowdown_reason(covered, "xla").endswith(
        "fused kernel: xla was asked for"
    )
    assert pallas_kernels.slowdown_reason(dense) is None
    assert "warning" not in pallas_kernels.explain(covered)


LAUNCHES = [
    (128, 1, "vkq-1bit", TuningConfig(8, 4), None, False),
    (128, 4, "a codebook", TuningConfig(8, 4, 2, 4), 5.0, True),
    (128, 1, "learned", TuningConfig(16, 4), None, False),
    (128, 4, "learned", TuningConfig(8, 8, 1, 4), None, False),
]


def launches_of(head_dim, per_kv_head, codes, tuning, soft_cap, windowed):
    """Programs and operands' shapes of a layer of a cache with its text bank."""
    query, layer = layer_of(head_dim, per_kv_head, codes)
    found = []

    def launch(spec, operands):
        found.append(
            (spec, {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in operands.items()})
        )
        return tuple(jnp.zeros(x.shape, x.dtype) for x in program_of(spec).results.values())

    options = {"launch": launch, "tuning": tuning, "logits_soft_cap": soft_cap}
    if windowed:
        options["starts"] = random_starts(query, layer)
    jax.eval_shape(lambda: mosaic_gpu.attend_layer(query, stacked(layer), 1, **options))
    return [(program_of(spec), operands) for spec, operands in found]


@pytest.mark.parametrize("case", LAUNCHES)
def test_lowers_to_cuda(case):
    for program, operands in launches_of(*case):
        assert "mosaic_gpu" in lower_to_cuda(program, operands)


@needs_ptxas
@pytest.mark.parametrize("case", LAUNCHES)
def test_ptxas_accepts_every_instruction(case, tmp_path):
    for program, operands in launches_of(*case):
        assert "Used" in ptxas(program, operands, tmp_path)
