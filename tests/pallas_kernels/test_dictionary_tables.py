"""The kernels that code dictionary codes with a model's tables, emulated, against plain coding."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax
from pallas_kernels.attention import support
from pallas_kernels.isa.program import run_emulated
from pallas_kernels.quantize import nearest_kernel
from pallas_kernels.quantize.dictionary_bank import dictionary_bank, unfused_pair_reason
from tests.pallas_kernels.test_dictionary_bank import changed, check
from tests.pallas_kernels.test_quantize_bank import layer
from tests.support.compiling import lower_to_cuda, needs_ptxas, programs_of, ptxas


def tables_of(codes, head_dim, kv_heads=2, seed=0):
    """Tables as calibration makes them, of random numbers."""
    rng = np.random.default_rng(seed)

    def stored(x):
        return jnp.asarray(x, jnp.bfloat16)

    def dictionary(virtual, metric):
        channels = np.linalg.qr(rng.normal(size=(kv_heads, head_dim, head_dim)))[0]
        analysis, synthesis = channels.swapaxes(-1, -2), None
        if metric is not None:
            analysis, synthesis = analysis @ metric, stored(np.linalg.solve(metric, channels))
        bits = np.zeros((kv_heads, head_dim), int)
        for row in bits:  # some channels have none
            np.add.at(row, rng.permutation(4 * head_dim)[:virtual] % (head_dim - 3), 1)
        channel = np.stack([np.repeat(np.arange(head_dim), row) for row in bits])
        first = np.take_along_axis(np.cumsum(bits, -1) - bits, channel, -1)
        shift = np.arange(virtual) - first
        step = rng.uniform(0.3, 1.5, (kv_heads, head_dim))
        weight = np.take_along_axis(step, channel, -1) * 2.0 ** (shift - 1)
        return vkq_jax.ClassTables(
            analysis=stored(analysis),
            synthesis=synthesis,
            step=jnp.asarray(step, jnp.float32),
            top=jnp.asarray(2**bits - 1, jnp.int32),
            channel=jnp.asarray(channel, jnp.int32),
            shift=jnp.asarray(shift, jnp.int32),
            weight=jnp.asarray(1.1 * weight, jnp.float32),
        )

    def side(codes):
        book = rng.normal(size=(kv_heads, codes.codebook, head_dim))
        metric = rng.normal(size=(kv_heads, head_dim, head_dim)) / 4 / head_dim**0.5
        metric = np.eye(head_dim) + metric + metric.swapaxes(-1, -2) if codes.metric else None
        virtual = [codes.virtual_channels(c, head_dim) for c in range(len(codes.classes))]
        return vkq_jax.SideTables(
            codebook=stored(book) if codes.codebook else None,
            metric=None if metric is None else jnp.asarray(metric, jnp.float32),
            classes=tuple(dictionary(n, metric) for n in virtual) if codes.learned else None,
        )

    return vkq_jax.CodeTables(*map(side, codes))


def with_codebook(count, centres=1):
    """The calibrated plan of Hadamard planes around a codebook, with so many centroids."""
    plan = vkq_jax.calibrated_presets["vkq-1bit"][0]
    return changed((plan.key, plan.value), codebook=count, centres=centres)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("head_dim", "num_positions", "lengths", "count", "centres"),
    [
        (64, 33, (33, 0), 16, 1),
        (128, 300, (300, 7), 256, 1),
        (64, 600, (600, 0, 33), 24, 0),
        (128, 576, (513,), 8, 1),
    ],
)
def test_equals_plain_coding_around_a_codebook(head_dim, num_positions, lengths, count, centres):
    codes = with_codebook(count, centres)
    check(layer(head_dim, num_positions, lengths), codes, tables_of(codes, head_dim))


@pytest.mark.ci
def test_thread_blocks_that_take_several_runs_of_tokens(monkeypatch):
    monkeypatch.setattr(nearest_kernel, "_DEVICE", 1)
    codes = with_codebook(8)
    arguments = layer(64, 300, (300, 7, 290))
    check(arguments, codes, tables_of(codes, 64))
    spec = nearest_kernel.NearestSpec(2, 3, 2, 300, 64, 8, True, False)
    assert (spec.rounds, spec.blocks) == (2, 1)


def learned(name, plan=0, count=16, **changes):
    plan = vkq_jax.calibrated_presets[name][plan]
    return changed((plan.key, plan.value), codebook=count, **changes)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "head_dim", "num_positions", "lengths", "changes"),
    [
        ("vkq-half", 128, 300, (300, 7), {}),
        ("vkq-2bit", 128, 140, (140,), {}),
        ("vkq-half", 64, 70, (33, 0), {"scale": "between", "centres": 0}),
        ("vkq-2bit", 64, 300, (257,), {"scale": "norm"}),
        ("vkq-2bit", 128, 70, (70, 65), {"scale": None}),
        ("vkq-1bit", 128, 140, (140, 33), {"plan": 1}),
        ("vkq-2bit", 64, 70, (70, 33), {"plan": 1, "centres": 1}),
    ],
)
def test_equals_plain_coding_by_learned_dictionaries(
    name, head_dim, num_positions, lengths, changes
):
    codes = learned(name, **changes)
    check(layer(head_dim, num_positions, lengths), codes, tables_of(codes, head_dim))


@pytest.mark.ci
def test_elements_that_are_not_finite_and_tokens_that_are_alike():
    key, value, index, valid = layer(64, 70, (70, 33))
    first = int(index[0, 5])
    key = key.at[0, first, 0, 3].set(jnp.nan).at[0, first, 0, 9].set(jnp.inf)
    for codes in (with_codebook(16), learned("vkq-half")):
        tables = tables_of(codes, 64)
        check((key, jnp.ones_like(value), index, valid), codes, tables)


# Without a GPU: lowering, ptxas

PROGRAMS = {"nearest": 128, "codes": 255, "learned": 255}  # registers: more wait in memory


def program_of(name):
    """A program and its operands' shapes."""
    codes = learned("vkq-half", count=256) if name == "learned" else with_codebook(256)
    code = functools.partial(dictionary_bank, codes=codes, tables=tables_of(codes, 128))
    _, nearest, _, coded = programs_of(code, *layer(128, 300, (300,)))
    return nearest if name == "nearest" else coded


@pytest.mark.ci
@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers_to_cuda(name):
    assert "mosaic_gpu" in lower_to_cuda(*program_of(name))


@pytest.mark.ci
@needs_ptxas
@pytest.mark.parametrize("name", PROGRAMS)
def test_ptxas_accepts_every_instruction(name, tmp_path):
    report = ptxas(*program_of(name), tmp_path)
    assert "0 bytes spill stores" in report
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert int(registers) <= PROGRAMS[name]


# Which implementation a call takes, vmap


def test_what_the_kernels_do_not_cover_is_said():
    key, *_ = layer(64, 33, (33,))

    def reason(codes, tables):
        return str(unfused_pair_reason(key, codes, 33, tables))

    codes = with_codebook(16)
    tables = tables_of(codes, 64)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), tables)
    assert reason(codes, tables) == "None"
    assert "no tables" in reason(codes, None)
    assert "codebook in float32" in reason(codes, wide)
    assert "expected a codebook [2, 24, 64]" in reason(changed(codes, codebook=24), tables)
    assert "not a multiple of 8" in reason(changed(codes, codebook=12), tables)
    assert "differ in centres" in reason((codes[0], *changed(codes[1:], centres=0)), tables)
    codes = learned("vkq-half")
    tables = tables_of(codes, 64)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), tables.key.classes)
    wide = dataclasses.replace(tables.key, classes=wide)
    assert "without a dictionary" in reason(codes, tables_of(with_codebook(16), 64))
    assert "dictionary in float32" in reason(codes, vkq_jax.CodeTables(wide, tables.value))
    assert "codebook of 0" in reason(changed(codes, codebook=0), tables)
    codes = (dataclasses.replace(codes[0], metric=True), codes[1])
    assert "without a metric" in reason(codes, tables)
    assert 'metric beside scale="unbiased"' in reason(codes, tables_of(codes, 64))


def test_calibrated_plans_take_the_kernels_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(support, "device_reason", lambda: None)
    key, value, index, _ = layer(64, 33, (33,))
    taken = {}
    for name, plans in vkq_jax.calibrated_presets.items():
        for number, plan in enumerate(plans):
            tables = tables_of((plan.key, plan.value), 64)
            chosen = pallas_kernels.choose_coding(key, value, index, plan, tables=tables)
            taken[name, number] = chosen == "mosaic_gpu"
    assert [plan for plan, chosen in taken.items() if not chosen] == [("oscar-2bit", 0)]


@pytest.mark.ci
def test_mapped_axes_of_tokens_and_of_tables():
    arguments = layer(64, 40, (40, 7, 33))
    codes = with_codebook(8)
    tables = [tables_of(codes, 64), tables_of(codes, 64, seed=1)]
    code = functools.partial(dictionary_bank, codes=codes, run=run_emulated)

    def alone(number, tables):
        return code(*(x[number : number + 1] for x in arguments), tables=tables)

    def stack(*x):
        return jnp.stack(x)

    got = jax.vmap(lambda *x: code(*x, tables=tables[0]))(*(x[:, None] for x in arguments))
    expected = jax.tree.map(stack, *(alone(i, tables[0]) for i in range(3)))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    both = jax.tree.map(stack, *tables)
    got = jax.vmap(lambda t: code(*(x[:1] for x in arguments), tables=t))(both)
    expected = jax.tree.map(stack, *(alone(0, t) for t in tables))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
