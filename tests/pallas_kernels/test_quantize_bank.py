"""The coding kernel's body, emulated on the CPU, against plain coding; lowering to CUDA."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels.attention import support
from pallas_kernels.isa import emulated_operations
from pallas_kernels.isa.emulated_operations import EmulatedOperations
from pallas_kernels.isa.program import run_emulated
from pallas_kernels.quantize import quantize_bank
from pallas_kernels.quantize.quantize_bank import fused_bank, unfused_reason
from tests.support.caches import relative_error
from tests.support.compiling import lower_to_cuda, needs_ptxas, programs_of, ptxas
from vkq_jax import KVQuantConfig, LevelCodes, SignCodes
from vkq_jax.cache.visual import left_pack
from vkq_jax.cache.visual_bank import quantize_visual

SIGNS = SignCodes(scale_bits=8)


def layer(head_dim, num_positions, lengths, dtype=jnp.bfloat16, kv_heads=2):
    """Keys, values, index and mask: visual tokens between text, padding where they are fewer."""
    rng = np.random.default_rng(num_positions)
    batch, tokens = len(lengths), num_positions + 9
    shape = (2, batch, tokens, kv_heads, head_dim)
    offset, size = rng.normal(size=(2, 2, 1, 1, kv_heads, head_dim))
    x = rng.normal(size=shape) * np.exp(size) + 2 * offset
    visual = np.zeros((batch, tokens), bool)
    for row, length in zip(visual, lengths, strict=True):
        row[rng.permutation(tokens)[:length]] = True
    key, value = jnp.asarray(x, dtype)
    return key, value, *left_pack(jnp.asarray(visual), num_positions)


@functools.partial(jax.jit, static_argnames="quant")
def plain_bank(key, value, index, valid, quant, tables=None, attention=None):
    return pallas_kernels.tile(quantize_visual(key, value, index, valid, quant, tables, attention))


@jax.jit
def unpacked(tensor):
    """Code words, scales in steps (of the logarithm, or of bfloat16), values of each position."""
    plain = tensor.plain()
    scale = plain.token_scale
    if scale.dtype == jnp.bfloat16:
        scale = jax.lax.bitcast_convert_type(scale, jnp.uint16)
    return plain.packed, scale.astype(jnp.int32), plain.dequantize()


def check(key, value, index, valid, codes, run=run_emulated):
    quant = KVQuantConfig(codes, codes)
    got = fused_bank(key, value, index, valid, quant, run=run)
    plain = plain_bank(key, value, index, valid, quant)
    assert jax.tree.structure(got) == jax.tree.structure(plain)
    np.testing.assert_array_equal(got.length, plain.length)
    for ours, theirs in ((got.key, plain.key), (got.value, plain.value)):
        np.testing.assert_array_equal(ours.centre, theirs.centre)
        assert ours.packed.shape == theirs.packed.shape
        differing = np.bitwise_count(np.asarray(ours.packed) ^ np.asarray(theirs.packed))
        assert differing.sum() <= 1e-4 * 32 * ours.packed.size
        # Padding of the last block, too, has no scale.
        assert ours.token_scale.shape == theirs.token_scale.shape
        assert not np.asarray(ours.token_scale)[np.asarray(theirs.token_scale) == 0].any()
        words, steps, values = unpacked(ours)
        _, expected_steps, expected = unpacked(theirs)
        steps = np.abs(np.asarray(steps) - np.asarray(expected_steps))
        assert steps.max() <= 1
        assert (steps > 0).mean() < 0.01
        assert relative_error(values, expected) < 0.02
        padding = np.broadcast_to(~np.asarray(valid)[:, None], steps.shape)
        assert not np.asarray(words)[padding].any()


@pytest.mark.parametrize(
    ("head_dim", "num_positions", "lengths", "scale_bits"),
    [
        (64, 33, (33, 0), 8),
        (64, 300, (300, 7), 16),
        (64, 576, (129, 576), 8),
        (128, 33, (0, 33), 16),
        (128, 300, (7, 300), 8),
        (128, 576, (576, 513), 16),
        (128, 256, (1,), 8),
    ],
)
def test_equals_plain_coding(head_dim, num_positions, lengths, scale_bits):
    check(*layer(head_dim, num_positions, lengths), SignCodes(scale_bits=scale_bits))


@pytest.mark.parametrize(
    ("rotation", "gamma"), [("hadamard", 0.0), ("hadamard", 0.5), (None, 1.0), (None, 0.5)]
)
def test_settings(rotation, gamma):
    codes = SignCodes(rotation=rotation, gamma=gamma, beta=0.25, group_size=1000)
    check(*layer(64, 70, (70, 33)), codes)


def test_float32():
    check(*layer(64, 140, (140, 90), jnp.float32), SIGNS)


def test_positions_at_the_centre_and_padding_that_is_not_finite():
    key, value, index, valid = layer(64, 70, (70, 33))
    unused = jnp.ones(key.shape[:2], bool).at[jnp.arange(2)[:, None], index].set(False)
    key = jnp.where(unused[..., None, None], jnp.bfloat16(jnp.nan), key)
    value = jnp.where(unused[..., None, None], jnp.bfloat16(jnp.inf), jnp.full_like(value, -1.5))
    index = jnp.where(valid, index, jnp.argmax(unused, axis=1).astype(jnp.int32)[:, None])
    check(key, value, index, valid, SIGNS)
    quant = KVQuantConfig(SIGNS, SignCodes(gamma=0.5))
    got = fused_bank(key, value, index, valid, quant, run=run_emulated).value
    assert not got.packed.any()
    assert not got.token_scale.any()


def test_each_word_is_written_once(monkeypatch):
    """Results begin as ones only, which no codes of this test are."""

    class Counting(EmulatedOperations):
        def _store(self, condition, address, offset, values):
            unwritten = self._unwritten()
            super()._store(condition, address, offset, values)
            lanes = (self._full(condition) != 0) & self._active[:, None]
            assert unwritten - self._unwritten() == len(values) * lanes.sum()

        def _unwritten(self):
            return sum((m.view(np.uint32) == 0xFFFFFFFF).sum() for m in self._memory[-2:])

    monkeypatch.setattr(emulated_operations, "EmulatedOperations", Counting)
    check(*layer(128, 300, (300, 7)), SIGNS)
    check(*layer(64, 70, (70, 33)), SignCodes(scale_bits=16))


# Without a GPU: lowering, ptxas


PROGRAMS = {
    "sums": (128, jnp.bfloat16, "key sums", SIGNS),
    "sums of 64 channels": (64, jnp.bfloat16, "key sums", SIGNS),
    "float32 sums": (128, jnp.float32, "key sums", SIGNS),
    "keys": (128, jnp.bfloat16, "key", SIGNS),
    "values": (128, jnp.bfloat16, "value", SIGNS),
    "values, 16-bit scales": (64, jnp.bfloat16, "value", SignCodes(gamma=0.5)),
    "float32 keys, not rotated": (64, jnp.float32, "key", SignCodes(rotation=None)),
}


def program_of(name):
    """A program and its operands' shapes."""
    head_dim, dtype, what, codes = PROGRAMS[name]
    code = functools.partial(fused_bank, quant=KVQuantConfig(codes, codes))
    found = programs_of(code, *layer(head_dim, 300, (300,), dtype))
    return found[("key sums", "key", "value sums", "value").index(what)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers_to_cuda(name):
    assert "mosaic_gpu" in lower_to_cuda(*program_of(name))


@needs_ptxas
@pytest.mark.parametrize("name", PROGRAMS)
def test_ptxas_accepts_every_instruction(name, tmp_path):
    report = ptxas(*program_of(name), tmp_path)
    # Three thread blocks on a multiprocessor, and nothing waits in memory.
    assert "0 bytes spill stores" in report
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert int(registers) <= 168


# Which implementation a call takes


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU, whose coding kernel is emulated."""
    monkeypatch.setattr(support, "device_reason", lambda: None)
    emulated = functools.partial(fused_bank, run=run_emulated)
    monkeypatch.setattr(quantize_bank, "fused_bank", emulated)


def same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_without_the_device_the_default_is_plain_coding():
    arguments = (*layer(64, 33, (33, 4)), KVQuantConfig(SIGNS, SIGNS))
    for implementation in (None, "xla"):
        got = pallas_kernels.quantize_bank(*arguments, implementation=implementation)
        plain = quantize_visual(*arguments)
        same(got, pallas_kernels.to_kernel_layout(plain, implementation=implementation))
    with pytest.raises(ValueError, match="implementation must be one of"):
        pallas_kernels.quantize_bank(*arguments, implementation="cuda")
    if jax.default_backend() == "cpu":
        key, value, index, _, quant = arguments
        said = pallas_kernels.explain_coding(key, value, index, quant).splitlines()
        assert said[0].startswith("mosaic_gpu: needs an NVIDIA GPU")
        assert said[1:] == ["xla: taken"]
        with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
            pallas_kernels.quantize_bank(*arguments, implementation="mosaic_gpu")
        said = pallas_kernels.explain_coding(key, value, index, KVQuantConfig(SIGNS, LevelCodes()))
        assert "cpu; coding values: LevelCodes are not sign codes" in said


def test_with_the_device_the_default_is_the_kernel(gpu):
    arguments = (*layer(64, 33, (33, 4)), KVQuantConfig(SIGNS, SIGNS))
    fused = fused_bank(*arguments, run=run_emulated)
    for implementation in (None, "mosaic_gpu"):
        same(pallas_kernels.quantize_bank(*arguments, implementation=implementation), fused)
    plain = pallas_kernels.quantize_bank(*arguments, implementation="xla")
    same(plain, quantize_visual(*arguments))
    key, value, index, _, quant = arguments
    abstract = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value, index))
    said = pallas_kernels.explain_coding(*abstract, quant)
    assert said.splitlines() == ["mosaic_gpu: taken", "xla: on request"]


def test_what_the_kernel_does_not_code_falls_back_visibly(gpu):
    arguments = (*layer(64, 33, (33, 4)), KVQuantConfig(SIGNS, LevelCodes()))
    same(pallas_kernels.quantize_bank(*arguments), pallas_kernels.tile(quantize_visual(*arguments)))
    key, value, index, _, quant = arguments
    assert pallas_kernels.choose_coding(key, value, index, quant) == "xla"
    said = pallas_kernels.explain_coding(key, value, index, quant).splitlines()
    assert said == ["mosaic_gpu: coding values: LevelCodes are not sign codes", "xla: taken"]
    with pytest.raises(NotImplementedError, match="coding values: LevelCodes are not sign codes"):
        pallas_kernels.quantize_bank(*arguments, implementation="mosaic_gpu")


def test_heads_that_attention_pads_are_coded_in_xla(gpu):
    arguments = (*layer(96, 33, (33, 4)), KVQuantConfig(SIGNS, SIGNS))
    got = pallas_kernels.quantize_bank(*arguments)
    assert isinstance(got.key, pallas_kernels.TiledSigns)
    same(got, pallas_kernels.tile(quantize_visual(*arguments)))
    key, value, index, _, quant = arguments
    said = pallas_kernels.explain_coding(key, value, index, quant)
    assert said.startswith("mosaic_gpu: coding keys: head_dim 96 is none of (64, 128)")


# vmap and gradients


def test_mapped_axes_are_folded_into_one_launch():
    key, value, index, valid = layer(64, 150, (150, 7, 64, 0, 3, 90))
    quant = KVQuantConfig(SIGNS, SIGNS)

    def code(*arguments):
        return fused_bank(*arguments, quant, run=run_emulated)

    def split(x):  # [6, ...] -> [3, 2, 1, ...]
        return x.reshape(3, 2, 1, *x.shape[1:])

    mapped, arguments = jax.vmap(jax.vmap(code)), [*map(split, (key, value, index, valid))]
    assert str(jax.make_jaxpr(mapped)(*arguments)).count("pure_callback[") == 4  # sums and codes
    got, expected = mapped(*arguments), code(key, value, index, valid)
    jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(split, expected))


def test_only_some_operands_mapped():
    key, value, index, valid = layer(64, 40, (40, 7))
    valids = jnp.stack([valid, valid & (index % 2 == 0)])
    quant = KVQuantConfig(SIGNS, SIGNS)

    def code(valid):
        return fused_bank(key, value, index, valid, quant, run=run_emulated)

    expected = jax.tree.map(lambda *x: jnp.stack(x), *map(code, valids))
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(code)(valids), expected)


def test_a_gradient_passes_the_kernel_by():
    key, value, index, valid = layer(64, 40, (40, 7), jnp.float32)
    quant = KVQuantConfig(SIGNS, SIGNS)

    def loss(key):
        bank = fused_bank(key, value, index, valid, quant, run=run_emulated)
        return bank.key.dequantize().sum() + jnp.square(key).sum()

    assert np.isfinite(jax.grad(loss)(key)).all()


def test_what_the_kernel_does_not_cover_is_said():
    key, _, index, _ = layer(64, 33, (33,))

    def reason(x=key, index=index, **changes):
        return unfused_reason(x, index, SignCodes(**changes))

    assert reason() is None
    assert reason(group_size=33) is None
    assert "centre per 32 positions" in str(reason(group_size=32))
    assert "median" in str(reason(centre="median"))
    assert "float16" in str(reason(table_dtype="float16"))
    assert "head_dim 32" in str(reason(key[..., :32]))
    assert "float16" in str(reason(key.astype(jnp.float16)))
    assert "no positions" in str(reason(index=index[:, :0]))
    with pytest.raises(NotImplementedError, match="coding values: LevelCodes are not sign codes"):
        fused_bank(*layer(64, 33, (33,)), KVQuantConfig(SIGNS, LevelCodes()), run=run_emulated)
