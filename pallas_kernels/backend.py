"""The fused kernels as a `Backend` for passes through a model's layers."""

import dataclasses
from typing import Unpack

import vkq_jax.attention.backend
from pallas_kernels.api import attend_layer, to_kernel_layout
from pallas_kernels.quantize.quantize_bank import quantize_bank
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.backend import CacheOptions
from vkq_jax.attention.post_scaled import AttentionOutput
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["Backend"]


@dataclasses.dataclass(frozen=True)
class Backend(vkq_jax.attention.backend.Backend):
    """Attention and coding by the first implementation that applies, or by the one asked for.

    Attributes:
        implementation: a name of `IMPLEMENTATIONS`; None takes the first that applies.
    """

    implementation: str | None = None

    def attend_cache(
        self,
        query: Float[Array, "B T N H"],
        cache: KVCache,
        layer: Int32[Array, ""] | int,
        **options: Unpack[CacheOptions],
    ) -> AttentionOutput:
        """Attention over one layer of a cache, see `attend_layer`."""
        return attend_layer(query, cache, layer, implementation=self.implementation, **options)

    def quantize(
        self,
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        index: Int32[Array, "B V"],
        valid: Bool[Array, "B V"],
        quant: KVQuantConfig,
        tables: CodeTables | None,
        attention: Float[Array, "B K V"] | None = None,
    ) -> VisualBank:
        """Codes one layer's visual tokens in the layout of attention, see `quantize_bank`."""
        # Attention's kernel covers more codes than the one that codes: asked for, it asks for no
        # other.
        coding = None if self.implementation == "mosaic_gpu" else self.implementation
        bank = quantize_bank(
            key,
            value,
            index,
            valid,
            quant,
            tables=tables,
            attention=attention,
            implementation=coding,
        )
        # Coded by default, which a card that the kernels have not been tried on lays out for XLA.
        return to_kernel_layout(bank, implementation=self.implementation)
