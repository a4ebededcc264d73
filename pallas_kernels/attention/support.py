"""Devices that the fused GPU kernel runs on, and caches that it covers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.isa.architectures import ARCHITECTURES, architecture_here
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import untileable_bank_reason
from vkq_jax.array_types import Array
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.sharing import shares_visual
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.codes.dense import DenseTensor

__all__ = ["device_reason", "uncovered_text", "unsupported_reason", "untried_reason"]


def unsupported_reason(
    cache: LayerCache | KVCache, logits_soft_cap: float | None = None
) -> str | None:
    """Why the kernel does not cover a cache (and a soft-cap); None if it does."""
    reason = layouts.head_dim_reason(cache.text.key.shape[-1])
    if reason:
        return reason
    if not cache.visual and (reason := uncovered_text(cache.text)):
        return reason
    if not cache.visual and not cache.text.cache_length:
        return "the cache has no room for anything"
    if shares_visual(cache):
        return "a visual bank that several sequences share"
    if cache.visual and cache.key_bias is not None and logits_soft_cap is not None:
        return "logits soft-cap together with a key bias"
    asked = cache.quant.calibration is not None or cache.score_map is not None
    calibrated = asked and bool(cache.visual)
    if logits_soft_cap is not None and calibrated:
        return "logits soft-cap together with score calibration"
    if calibrated and any(bank.class_map is not None for bank in cache.visual):
        return "score calibration of dictionary codes"
    for bank in cache.visual:
        if isinstance(bank.key, DenseTensor) and isinstance(bank.value, DenseTensor):
            if calibrated:
                return "score calibration of an uncoded bank"
            if cache.key_bias is not None:
                return "a key bias beside an uncoded bank"
            reason = _uncovered_dense(bank.key.values) or _uncovered_dense(bank.value.values)
        else:
            reason = untileable_bank_reason(bank)
        if reason:
            return reason
    return None


def uncovered_text(text: TextBank) -> str | None:
    """Why no launch reads a text bank (maybe abstract); None if one does."""
    if text.key_scale is None:
        return _uncovered_dense(text.key)
    if text.key_scale.dtype != jnp.bfloat16:
        return f"text in 8 bits with scales in {text.key_scale.dtype}, not bfloat16"
    return _uncovered_head_dim(text.key)


def _uncovered_dense(x: Array | jax.ShapeDtypeStruct) -> str | None:
    """Why no launch reads dense keys or values (maybe abstract); None if one does."""
    if x.dtype != jnp.bfloat16:
        return f"dense banks in {x.dtype}, not bfloat16"
    return _uncovered_head_dim(x)


def _uncovered_head_dim(x: Array | jax.ShapeDtypeStruct) -> str | None:
    if x.shape[-1] not in layouts.HEAD_DIMS:
        return f"dense banks of head_dim {x.shape[-1]}, none of {layouts.HEAD_DIMS}"
    return None


def device_reason() -> str | None:
    """Why the kernel cannot run on JAX's default device; None if it can."""
    if jax.default_backend() != "gpu":
        return f"needs an NVIDIA GPU, the default backend is {jax.default_backend()}"
    capability = str(getattr(jax.devices()[0], "compute_capability", "unknown"))
    if capability not in ARCHITECTURES:
        return f"compute capability {capability} is none of {', '.join(ARCHITECTURES)}"
    return None


def untried_reason() -> str | None:
    """Why the kernel, which could run on JAX's default device, does so on request only."""
    here = architecture_here()
    if here is None or here.tried:
        return None
    return f"not run on such a card yet (compute capability {here.capability})"
