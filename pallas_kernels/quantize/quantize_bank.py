"""Codes one layer's visual keys and values: in XLA, or by a fused kernel in attention's layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pallas_kernels.api import (
    choose_implementation,
    to_kernel_layout,
    unavailable_reason,
    untried_reason,
)
from pallas_kernels.isa.program import Program, Run, run_on_gpu
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import Side, TiledSigns
from pallas_kernels.quantize.dictionary_bank import dictionary_bank, unfused_pair_reason
from pallas_kernels.quantize.half_block import HALF, WARPS, QuantizeSpec
from pallas_kernels.quantize.quantize_kernel import QuantizeKernel
from pallas_kernels.quantize.sum_kernel import SumKernel
from vkq_jax.arguments import checked, checked_shapes
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.visual_bank import VisualBank, quantize_visual
from vkq_jax.codes import groups
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.quantized import Quantizer
from vkq_jax.codes.sign_codes import SignCodes, error_ratio
from vkq_jax.messages import show
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["choose_coding", "explain_coding", "fused_bank", "quantize_bank", "unfused_reason"]

Arrays = Array | jax.ShapeDtypeStruct


@checked
def quantize_bank(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    quant: KVQuantConfig,
    *,
    tables: CodeTables | None = None,
    attention: Float[Array, "B K V"] | None = None,
    implementation: str | None = None,
) -> VisualBank:
    """Gathers one layer's visual positions and codes them, in the layout of attention's kernel.

    Args:
        key, value: of all tokens; keys with RoPE.
        index, valid: the visual ones among them, see `vkq_jax.cache.visual.left_pack`.
        quant: how they are coded.
        tables: offline tables of the codes, of this layer.
        attention: what codes sort tokens by, see `vkq_jax.Backend`.
        implementation: "mosaic_gpu" is the fused kernel, two passes each over keys and values, of
            which the first sums up the centres; the other names of `IMPLEMENTATIONS` code in XLA
            and lay the bank out for that name. None takes the kernel where it applies, see
            `explain_coding`, and otherwise XLA, laid out for the attention that is the default
            here.

    Raises:
        ValueError: unknown implementation.
        NotImplementedError: the fused kernel does not cover these codes, shapes or this device.
    """
    chosen = choose_coding(key, value, index, quant, tables=tables, implementation=implementation)
    if chosen == "mosaic_gpu":
        return fused_bank(key, value, index, valid, quant, tables, attention)
    bank = quantize_visual(key, value, index, valid, quant, tables, attention)
    return to_kernel_layout(bank, implementation=implementation)


@checked_shapes
def choose_coding(
    key: Arrays,
    value: Arrays,
    index: Arrays,
    quant: KVQuantConfig,
    *,
    tables: CodeTables | None = None,
    implementation: str | None = None,
) -> str:
    """The implementation that `quantize_bank` runs with these arguments; arrays may be abstract.

    Args:
        key, value, index, quant, tables, implementation: as for `quantize_bank`.

    Raises:
        ValueError, NotImplementedError: as `quantize_bank`.
    """
    if implementation not in (None, "mosaic_gpu"):
        return choose_implementation(implementation)
    reason = _unavailable(key, value, index, quant, tables)
    if implementation is None and (reason or untried_reason("mosaic_gpu")):
        return "xla"
    if reason is None:
        return "mosaic_gpu"
    raise NotImplementedError(f"implementation 'mosaic_gpu' does not apply here: {reason}")


@checked_shapes
def explain_coding(
    key: Arrays,
    value: Arrays,
    index: Arrays,
    quant: KVQuantConfig,
    tables: CodeTables | None = None,
) -> str:
    """The implementation that `quantize_bank` takes by default, and why, as one line.

    Args:
        key, value, index, quant, tables: as for `quantize_bank`; arrays may be abstract.
    """
    reason, untried = _unavailable(key, value, index, quant, tables), untried_reason("mosaic_gpu")
    if reason is None and untried:
        reason = f"on request, {untried}"
    return f"mosaic_gpu: {reason or 'taken'}\nxla: {'taken' if reason else 'on request'}"


def _unavailable(
    key: Arrays, value: Arrays, index: Arrays, quant: KVQuantConfig, tables: CodeTables | None
) -> str | None:
    """Why the kernel does not code these on this device, all reasons; None if it does."""
    reasons = unavailable_reason("mosaic_gpu"), _uncovered(key, value, index, quant, tables)
    return "; ".join(filter(None, reasons)) or None


def _uncovered(
    key: Arrays, value: Arrays, index: Arrays, quant: KVQuantConfig, tables: CodeTables | None
) -> str | None:
    """Why the kernel does not code these, whatever the device."""
    if (len(key.shape), len(value.shape), len(index.shape)) != (4, 4, 2):
        raise ValueError(
            f"expected keys and values [B, T, K, H] and index [B, V], got key {show(key)}, value "
            f"{show(value)} and index {show(index)}"
        )
    pair = _dictionaries(quant)
    if pair is not None:
        reason = unfused_pair_reason(key, pair, index.shape[1], tables)
        return reason and f"coding keys and values: {reason}"
    for side, x, codes in (("key", key, quant.key), ("value", value, quant.value)):
        reason = unfused_reason(x, index, codes)
        if reason:
            return f"coding {side}s: {reason}"
    return None


def fused_bank(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    quant: KVQuantConfig,
    tables: CodeTables | None = None,
    attention: Float[Array, "B K V"] | None = None,
    *,
    run: Run = run_on_gpu,
) -> VisualBank:
    """`quantize_bank` by the kernel; `run` runs it, tests emulate it.

    Raises:
        NotImplementedError: the kernel does not cover it, see `unfused_reason`.
    """
    reason = _uncovered(key, value, index, quant, tables)
    if reason:
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    pair = _dictionaries(quant)
    if pair is not None:
        if not quant.needs_attention:
            attention = None
        return dictionary_bank(key, value, index, valid, pair, tables, attention, run=run)

    def code(side: Side, x: Array, codes: Quantizer) -> TiledSigns:
        assert isinstance(codes, SignCodes)
        return _code(x, index, valid, codes, side, run)

    return VisualBank(
        code("key", key, quant.key),
        code("value", value, quant.value),
        valid.sum(-1, dtype=jnp.int32),
    )


def _dictionaries(quant: KVQuantConfig) -> tuple[DictionaryCodes, DictionaryCodes] | None:
    """Both codes, where they are dictionary codes."""
    if isinstance(quant.key, DictionaryCodes) and isinstance(quant.value, DictionaryCodes):
        return quant.key, quant.value
    return None


def unfused_reason(x: Arrays, index: Arrays, codes: Quantizer) -> str | None:
    """Why the kernel does not code keys or values `x`; None if it does."""
    num_positions, head_dim = index.shape[1], x.shape[-1]
    if not isinstance(codes, SignCodes):
        return f"{type(codes).__name__} are not sign codes"
    if head_dim not in layouts.HEAD_DIMS:
        return f"head_dim {head_dim} is none of {layouts.HEAD_DIMS}"
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"activations in {x.dtype}, neither bfloat16 nor float32"
    if not num_positions:
        return "the bank has no positions"
    if codes.centre != "mean":
        return f"the {codes.centre} as centre"
    if codes.group_size is not None and codes.group_size < num_positions:
        return f"a centre per {codes.group_size} positions"
    if codes.table_dtype != "bfloat16":
        return f"tables in {codes.table_dtype}, not bfloat16"
    return None


@functools.partial(jax.jit, static_argnames=("codes", "side", "run"))
def _code(
    x: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    codes: SignCodes,
    side: Side,
    run: Run,
) -> TiledSigns:
    batch, tokens, kv_heads, head_dim = x.shape
    num_positions = index.shape[1]
    spec = QuantizeSpec(
        batch=batch,
        tokens=tokens,
        kv_heads=kv_heads,
        head_dim=head_dim,
        element_bytes=x.dtype.itemsize,
        num_positions=num_positions,
        side=side,
        scale_bits=codes.scale_bits,
        rotated=codes.rotation is not None,
        gamma=codes.gamma,
    )
    missing = HALF * spec.halves - num_positions
    operands = {
        "x": x.reshape(-1, head_dim),
        "position": jnp.pad(
            jnp.where(valid, index, -1), ((0, 0), (0, missing)), constant_values=-1
        ),
    }
    sums, spoilt = _launch(spec, _sum_program, run, jax.lax.stop_gradient(operands))
    count = jnp.maximum(valid.sum(-1), 1).astype(jnp.float32)
    mean = sums.reshape(batch, kv_heads, -1, head_dim).sum(2) / count[:, None, None]
    centre = groups.as_stored(mean, "bfloat16")  # 0 where there are no valid positions
    exact = centre.astype(jnp.float32).reshape(-1, head_dim)
    operands["centre"] = jnp.where(exact == 0, 0.0, exact)  # the kernel wants no -0
    words, scale = _launch(spec, _program, run, jax.lax.stop_gradient(operands))
    spoilt = spoilt.reshape(batch, kv_heads, -1, head_dim).any(2)
    centre = jnp.where(spoilt, jnp.nan, centre)
    return TiledSigns(
        packed=words.reshape(batch, kv_heads, -1),
        centre=centre[:, :, None],
        token_scale=scale.reshape(batch, kv_heads, *scale.shape[1:]),
        side=side,
        num_positions=num_positions,
        head_dim=head_dim,
        rotated=spec.rotated,
        score_error_factor=codes.beta * error_ratio(codes.gamma),
    )


def _launch(
    spec: QuantizeSpec,
    program: Callable[[QuantizeSpec], Program],
    run: Run,
    operands: Mapping[str, Array],
) -> tuple[Array, ...]:
    """The results of a program; a mapped axis becomes part of the batch, still one launch."""

    @jax.custom_batching.custom_vmap
    def launch(operands):
        return run(program(spec), operands)

    @launch.def_vmap
    def fold(axis_size, in_batched, operands):
        def outward(x, batched):  # [Y, B * ..., ...] -> [Y * B * ..., ...]
            x = x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        folded = dataclasses.replace(spec, batch=axis_size * spec.batch)
        results = _launch(folded, program, run, jax.tree.map(outward, operands, in_batched[0]))
        unfolded = tuple(x.reshape(axis_size, -1, *x.shape[1:]) for x in results)
        return unfolded, (True,) * len(unfolded)

    return launch(dict(operands))


def _sum_program(spec: QuantizeSpec) -> Program:
    shape = (spec.batch * spec.kv_heads, spec.halves, spec.head_dim)
    return Program(
        body=lambda ops: SumKernel(ops, spec).run(),
        results={
            "sum": jax.ShapeDtypeStruct(shape, jnp.float32),
            "spoilt": jax.ShapeDtypeStruct(shape, jnp.uint32),
        },
        grid=spec.grid,
        warps=WARPS,
        shared_words=2 * WARPS * spec.head_dim,
    )


def _program(spec: QuantizeSpec) -> Program:
    heads = spec.batch * spec.kv_heads
    blocks = layouts.num_blocks(spec.num_positions)
    return Program(
        body=lambda ops: QuantizeKernel(ops, spec).run(),
        results={
            "words": jax.ShapeDtypeStruct((heads, spec.words), jnp.uint32),
            "scale": jax.ShapeDtypeStruct((heads, blocks, 32, spec.scale_words), jnp.uint32),
        },
        grid=spec.grid,
        warps=WARPS,
        shared_words=spec.shared_words,
    )
