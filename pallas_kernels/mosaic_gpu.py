"""Decode attention whose visual part is the fused GPU kernel; the text part is XLA's."""

import dataclasses

import jax
import jax.numpy as jnp

import vkq_jax.attention
from pallas_kernels.launch import Launch, gpu_launch
from pallas_kernels.problem import Tiling
from pallas_kernels.tiled import tile, untileable_reason
from pallas_kernels.visual_attention import attend_visual
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention import Attended, merge, to_kv_heads
from vkq_jax.cache import LayerCache

__all__ = ["attend_cache", "device_reason", "unsupported_reason"]

_CAPABILITIES = ("9.0",)  # tested ones; the 1-bit instruction is native on 8.0 to 9.0


def attend_cache(
    query: Float[Array, "B T N H"],
    layer: LayerCache,
    *,
    visible_text: Int32[Array, "B T"] | None = None,
    logits_scale: float | None = None,
    launch: Launch = gpu_launch,
    tiling: Tiling | None = None,
) -> Attended:
    """Same contract as `vkq_jax.attention.attend_cache`.

    Args:
        query, layer, visible_text, logits_scale: as there. Banks that are not tiled yet (see
            `pallas_kernels.tile`) are tiled on the way, which costs more than the attention.
        launch: runs the kernel; tests emulate it.
        tiling: how the kernel's work is cut; None chooses by shape.

    Raises:
        NotImplementedError: the kernel does not cover these codes.
    """
    reason = unsupported_reason(layer)
    if reason:
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    num_queries, head_dim = query.shape[1], query.shape[-1]
    scale = head_dim**-0.5 if logits_scale is None else logits_scale
    rows = to_kv_heads(query.astype(jnp.float32) * scale, layer.text.key.shape[1])

    attended = vkq_jax.attention.attend_cache(
        query,
        dataclasses.replace(layer, visual=()),
        visible_text=visible_text,
        logits_scale=logits_scale,
    )
    for bank in layer.visual:
        output, logsumexp = attend_visual(rows, tile(bank), launch, tiling)
        visual = Attended.from_kv_heads(output, logsumexp, num_queries)
        attended = merge(attended, visual)
    return attended


def unsupported_reason(layer: LayerCache) -> str | None:
    """Why the kernel does not cover a cache; None if it does."""
    if not layer.visual:
        return "there is no visual bank"
    if layer.quant.calibration is not None:
        return "score calibration"
    for bank in layer.visual:
        for name, tensor in (("keys", bank.key), ("values", bank.value)):
            reason = untileable_reason(tensor)
            if reason:
                return f"{name}: {reason}"
    return None


def device_reason() -> str | None:
    """Why the kernel cannot run on JAX's default device; None if it can."""
    if jax.default_backend() != "gpu":
        return f"needs an NVIDIA GPU, the default backend is {jax.default_backend()}"
    capability = str(getattr(jax.devices()[0], "compute_capability", "unknown"))
    if capability not in _CAPABILITIES:
        return f"compute capability {capability} is none of {', '.join(_CAPABILITIES)}"
    return None
