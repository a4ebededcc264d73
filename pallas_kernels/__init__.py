"""Attention over a packed KV cache: one entry point, several implementations."""

from pallas_kernels.api import (
    IMPLEMENTATIONS,
    attend_cache,
    attend_layer,
    choose_implementation,
    decode_attention,
    explain,
    slowdown_reason,
    to_kernel_layout,
    unavailable_reason,
)
from pallas_kernels.backend import Backend
from pallas_kernels.layout.tiled import TiledLevels, TiledSigns, tile
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from pallas_kernels.quantize.quantize_bank import choose_coding, explain_coding, quantize_bank

__all__ = [
    "IMPLEMENTATIONS",
    "Backend",
    "TiledDictionary",
    "TiledLevels",
    "TiledSigns",
    "attend_cache",
    "attend_layer",
    "choose_coding",
    "choose_implementation",
    "decode_attention",
    "explain",
    "explain_coding",
    "quantize_bank",
    "slowdown_reason",
    "tile",
    "to_kernel_layout",
    "unavailable_reason",
]
