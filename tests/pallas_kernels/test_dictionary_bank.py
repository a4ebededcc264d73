"""The kernels that code dictionary codes, emulated on the CPU, against plain coding."""

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
from pallas_kernels.quantize import quantize_bank
from pallas_kernels.quantize.dictionary_bank import dictionary_bank, unfused_pair_reason
from pallas_kernels.quantize.ordering import order_tokens
from tests.pallas_kernels.test_quantize_bank import layer, plain_bank
from tests.support.compiling import lower_to_cuda, needs_ptxas, programs_of, ptxas
from vkq_jax import KVQuantConfig, TokenClass
from vkq_jax.codes.dictionary_encoder import sorting_energy
from vkq_jax.codes.token_classes import assign_classes

NAMES = ("vkq-1bit", "vkq-half", "vkq-2bit")
CODES = {name: (vkq_jax.presets[name].key, vkq_jax.presets[name].value) for name in NAMES}


def changed(codes, **changes):
    return tuple(dataclasses.replace(x, **changes) for x in codes)


def check(arguments, codes, tables=None, attention=None, run=run_emulated):
    """Equal, apart from words of slots without a token, and tokens between two centres."""
    got = dictionary_bank(*arguments, codes, tables, attention, run=run)
    plain = plain_bank(*arguments, KVQuantConfig(*codes), tables, attention)
    assert jax.tree.structure(got) == jax.tree.structure(plain)
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(plain), strict=True)
    for (path, ours), theirs in pairs:
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if ".packed" not in jax.tree_util.keystr(path):
            few_differ(ours, theirs)
    for ours, theirs in ((got.key, plain.key), (got.value, plain.value)):
        ours, theirs = ours.plain(), theirs.plain()
        valid = jnp.repeat(arguments[3][:, None], ours.centre.shape[1], axis=1)
        _, taken = got.class_map.positions_of_slots(valid)
        stops = np.cumsum([words.shape[-2] for words in ours.packed])[:-1]
        for words, expected, scale, token in zip(
            ours.packed,
            theirs.packed,
            ours.token_scale,
            np.split(np.asarray(taken), stops, axis=-1),
            strict=True,
        ):
            there = token if scale is None else token & (np.asarray(scale) > 0)
            few_differ(words, np.where(there[..., None], expected, 0))


def few_differ(ours, theirs):
    if ours.dtype == jnp.uint32:  # of bits
        differing = np.bitwise_count(np.asarray(ours) ^ np.asarray(theirs)) / 32
    else:
        ours, theirs = (x.astype(jnp.float32) for x in (ours, theirs))
        differing = ~np.isclose(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert differing.sum() <= 1e-3 * differing.size


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "head_dim", "num_positions", "lengths"),
    [
        ("vkq-1bit", 64, 33, (33, 0)),
        ("vkq-1bit", 128, 300, (300, 7)),
        ("vkq-1bit", 64, 600, (600, 0)),
        ("vkq-half", 128, 576, (576, 513)),
        ("vkq-half", 64, 33, (20, 33)),
        ("vkq-2bit", 128, 300, (1, 300)),
        ("vkq-2bit", 64, 1300, (1300,)),
    ],
)
def test_equals_plain_coding(name, head_dim, num_positions, lengths):
    check(layer(head_dim, num_positions, lengths), CODES[name])


@pytest.mark.ci
@pytest.mark.parametrize(
    "changes",
    [{"scale": "norm", "smoothing": 0.0}, {"centres": 2}, {"centres": 4, "scale": "unbiased"}],
)
def test_settings(changes):
    key, value = CODES["vkq-1bit"]
    value_changes = {name: x for name, x in changes.items() if name != "smoothing"}
    codes = changed((key,), **changes) + changed((value,), **value_changes)
    check(layer(64, 70, (70, 33)), codes)


@pytest.mark.ci
def test_elements_that_are_not_finite_and_tokens_that_are_alike():
    key, value, index, valid = layer(64, 70, (70, 33))
    first = int(index[0, 5])
    key = key.at[0, first, 0, 3].set(jnp.nan).at[0, first, 0, 9].set(jnp.inf)
    check((key, jnp.ones_like(value), index, valid), CODES["vkq-1bit"])


@pytest.mark.ci
def test_classes_go_by_attention():
    attention = np.random.default_rng(1).exponential(size=(2, 2, 300)).astype(np.float32)
    attention[0, 0, 5], attention[1] = np.nan, 0
    check(layer(64, 300, (300, 200)), CODES["vkq-1bit"], attention=jnp.asarray(attention))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", [(300, 7, 0), (299, 1, 2)])
def test_tokens_are_put_into_classes_as_by_sorts(lengths, weighted):
    """Equally large energies keep the order of their positions."""
    classes = (TokenClass(0.1, 3), TokenClass(0.2, 2), TokenClass(0.3, 1), TokenClass(0.4, 0))
    energy = np.random.default_rng(0).exponential(size=(2, 3, 300)).astype(np.float32)
    energy[:, :, 100:180] = energy[:, :, :1]
    valid = jnp.arange(300)[None] < jnp.asarray(lengths)[:, None]
    energy = jnp.where(valid, energy, 0.0)
    attention = energy[0][:, ::-1].at[0, :2].set((jnp.nan, jnp.inf)) if weighted else None
    number, slot, count = order_tokens(energy, valid, classes, attention, run=run_emulated)
    expected = assign_classes(sorting_energy(*energy, valid, attention), valid, classes)
    np.testing.assert_array_equal(number, expected.classes())
    position, taken = expected.positions_of_slots()
    of_slots = np.where(taken, position, -1)
    start = own = 0
    for c, capacity in enumerate(expected.capacities):
        padded = -(-capacity // 128) * 128
        ours = np.asarray(slot)[:, start : start + padded]
        np.testing.assert_array_equal(ours[:, :capacity], of_slots[:, own : own + capacity])
        assert (ours[:, capacity:] == -1).all()
        np.testing.assert_array_equal(count[:, c], (ours >= 0).sum(-1))
        start, own = start + padded, own + capacity


# Without a GPU: lowering, ptxas

PROGRAMS = ("gather", "step", "assign", "order", "codes")
REGISTERS = (255, 128, 128, 64, 255)  # a register more is waiting in memory


def program_of(name, codes="vkq-1bit", head_dim=128):
    """A program and its operands' shapes."""
    code = functools.partial(dictionary_bank, codes=CODES[codes])
    found = programs_of(code, *layer(head_dim, 300, (300,)))
    return dict(zip(PROGRAMS, (found[0], found[1], *found[-3:]), strict=True))[name]


@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers_to_cuda(name):
    assert "mosaic_gpu" in lower_to_cuda(*program_of(name))


@needs_ptxas
@pytest.mark.parametrize("name", PROGRAMS)
def test_ptxas_accepts_every_instruction(name, tmp_path):
    report = ptxas(*program_of(name), tmp_path)
    assert "0 bytes spill stores" in report
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert int(registers) <= REGISTERS[PROGRAMS.index(name)]


# Which implementation a call takes, vmap and gradients


def test_what_the_kernels_do_not_cover_is_said():
    key, *_ = layer(64, 33, (33,))
    codes = CODES["vkq-1bit"]

    def reason(key=key, codes=codes, num_positions=33):
        return unfused_pair_reason(key, codes, num_positions)

    assert reason() is None
    assert "head_dim 32" in str(reason(key[..., :32]))
    assert "float32" in str(reason(key.astype(jnp.float32)))
    assert "no positions" in str(reason(num_positions=0))
    assert "without slots" in str(reason(num_positions=1))
    assert "20000 positions" in str(reason(num_positions=20000))
    assert "centres=1" in str(reason(codes=changed(codes, centres=1)))
    assert "half a plane" in str(reason(codes=changed(codes, classes=(TokenClass(1.0, 1.5),))))
    assert "float16" in str(reason(codes=changed(codes, table_dtype="float16")))
    differ = codes[0], *changed(codes[1:], centres=2)
    assert "differ in more than units" in str(reason(codes=differ))


def test_presets_take_the_kernels_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(support, "device_reason", lambda: None)
    key, value, index, _ = layer(128, 33, (33,))
    for name in vkq_jax.presets:
        chosen = pallas_kernels.choose_coding(key, value, index, vkq_jax.presets[name])
        assert (chosen == "mosaic_gpu") == (name in (*CODES, "signs-1bit")), name


@pytest.mark.ci
def test_mapped_axes_are_folded_into_the_same_launches(monkeypatch):
    key, value, index, valid = layer(64, 70, (70, 7, 64, 0, 3, 50))
    codes = CODES["vkq-1bit"]
    emulated = functools.partial(dictionary_bank, run=run_emulated)
    monkeypatch.setattr(quantize_bank, "dictionary_bank", emulated)

    def code(*arguments):
        return quantize_bank.fused_bank(*arguments, KVQuantConfig(*codes), run=run_emulated)

    def split(x):  # [6, ...] -> [3, 2, 1, ...]
        return x.reshape(3, 2, 1, *x.shape[1:])

    got = jax.vmap(jax.vmap(code))(*map(split, (key, value, index, valid)))
    jax.tree.map(
        np.testing.assert_array_equal, got, jax.tree.map(split, code(key, value, index, valid))
    )


@pytest.mark.ci
def test_a_gradient_passes_the_kernels_by():
    key, value, index, valid = layer(64, 33, (33, 7))

    def loss(key):
        bank = dictionary_bank(key, value, index, valid, CODES["vkq-1bit"], run=run_emulated)
        return (bank.key.centre.sum() + jnp.square(key).sum()).astype(jnp.float32)

    np.testing.assert_array_equal(jax.grad(loss)(key), 2 * key)
