"""Codes one layer's visual keys and values: in XLA, or by a fused kernel in attention's layout."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import layouts
from pallas_kernels.api import choose_implementation, lay_out
from pallas_kernels.launch import Program, Run, run_on_gpu
from pallas_kernels.quantize_kernel import HALF, WARPS, QuantizeKernel, QuantizeProblem
from pallas_kernels.tiled import Side, TiledSigns
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache import VisualBank, quantize_visual
from vkq_jax.config import KVQuantConfig
from vkq_jax.quantized import CodeFamily
from vkq_jax.sign_codes import SignCodes, error_ratio

__all__ = ["fused_bank", "quantize_bank", "unfused_reason"]


def quantize_bank(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    quant: KVQuantConfig,
    *,
    implementation: str | None = None,
) -> VisualBank:
    """Gathers one layer's visual positions and codes them, in the layout of attention's kernel.

    Args:
        key, value: of all tokens; keys with RoPE.
        index, valid: the visual ones among them, see `vkq_jax.visual.compact`.
        quant: how they are coded.
        implementation: "mosaic_gpu" is the fused kernel, one pass each over keys and values after
            the centres. It has not been timed on a GPU yet and so is never the default. None and
            the other names of `IMPLEMENTATIONS` code in XLA and lay the bank out for that name.

    Raises:
        ValueError: unknown implementation.
        NotImplementedError: the fused kernel does not cover these codes, shapes or this device.
    """
    if implementation is not None:
        choose_implementation(implementation)
    if implementation == "mosaic_gpu":
        return fused_bank(key, value, index, valid, quant)
    bank = quantize_visual(key, value, index, valid, quant)
    return lay_out(bank, implementation=implementation)


def fused_bank(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    quant: KVQuantConfig,
    *,
    run: Run = run_on_gpu,
) -> VisualBank:
    """`quantize_bank` by the kernel; `run` runs it, tests emulate it.

    Raises:
        NotImplementedError: the kernel does not cover it, see `unfused_reason`.
    """

    def code(side: Side, x: Array, codes: CodeFamily) -> TiledSigns:
        reason = unfused_reason(x, index, codes)
        if reason:
            raise NotImplementedError(f"mosaic_gpu: coding {side}s: {reason}")
        assert isinstance(codes, SignCodes)
        return _code(x, index, valid, codes, side, run)

    return VisualBank(
        code("key", key, quant.key),
        code("value", value, quant.value),
        valid.sum(-1, dtype=jnp.int32),
    )


def unfused_reason(
    x: Float[Array, "B T K H"], index: Int32[Array, "B V"], codes: CodeFamily
) -> str | None:
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
    problem = QuantizeProblem(
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
    centre = _centre(x, index, valid)
    exact = centre.astype(jnp.float32).reshape(-1, head_dim)
    missing = HALF * problem.halves - num_positions
    operands = {
        "x": x.reshape(-1, head_dim),
        "position": jnp.pad(
            jnp.where(valid, index, -1), ((0, 0), (0, missing)), constant_values=-1
        ),
        "centre": jnp.where(exact == 0, 0.0, exact),  # the kernel wants no -0
    }
    words, scale = run(_program(problem), jax.lax.stop_gradient(operands))
    return TiledSigns(
        packed=words.reshape(batch, kv_heads, -1),
        centre=centre[:, :, None],
        token_scale=scale.reshape(batch, kv_heads, *scale.shape[1:]),
        side=side,
        num_positions=num_positions,
        head_dim=head_dim,
        rotated=problem.rotated,
        score_error_factor=codes.beta * error_ratio(codes.gamma),
    )


def _centre(
    x: Float[Array, "B T K H"], index: Int32[Array, "B V"], valid: Bool[Array, "B V"]
) -> Float[Array, "B K H"]:
    """The mean over valid positions, in bfloat16; 0 where there are none."""
    visual = jnp.take_along_axis(x, index[:, :, None, None], axis=1).astype(jnp.float32)
    total = jnp.where(valid[:, :, None, None], visual, 0.0).sum(1)
    count = jnp.maximum(valid.sum(-1), 1).astype(jnp.float32)
    return (total / count[:, None, None]).astype(jnp.bfloat16)


def _program(problem: QuantizeProblem) -> Program:
    heads = problem.batch * problem.kv_heads
    blocks = layouts.num_blocks(problem.num_positions)
    return Program(
        body=lambda ops: QuantizeKernel(ops, problem).run(),
        results={
            "words": jax.ShapeDtypeStruct((heads, problem.words), jnp.uint32),
            "scale": jax.ShapeDtypeStruct((heads, blocks, 32, problem.scale_words), jnp.uint32),
        },
        grid=problem.grid,
        warps=WARPS,
        shared_words=problem.shared_words,
    )
