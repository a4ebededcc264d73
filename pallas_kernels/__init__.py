"""Attention over a packed KV cache: one entry point, several implementations."""

from pallas_kernels.api import (
    IMPLEMENTATIONS,
    attend_cache,
    choose_implementation,
    decode_attention,
)

__all__ = ["IMPLEMENTATIONS", "attend_cache", "choose_implementation", "decode_attention"]
