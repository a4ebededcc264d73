"""The operations that a pass through a model's layers takes from outside: a `Backend`."""

import dataclasses
from typing import TypedDict, Unpack

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.last_queries import attention_of_last_queries
from vkq_jax.attention.post_scaled import AttentionOutput, attend_cache, attend_dense
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.cache.visual_bank import VisualBank, quantize_visual
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["Backend", "CacheOptions", "LogitsOptions"]


class LogitsOptions(TypedDict):
    """How scores become logits; static under jit.

    Attributes:
        logits_scale: H ** -0.5 where it is None.
        logits_soft_cap: see `vkq_jax.attention.soft_cap`.
    """

    logits_scale: float | None
    logits_soft_cap: float | None


class CacheOptions(LogitsOptions):
    """How queries attend to a cache.

    Attributes:
        visible_text: how many entries of the text bank each query sees.
        starts: where a sliding window lets each query begin; None lets it see all.
    """

    visible_text: Int32[Array, "B T"]
    starts: Starts | None


@dataclasses.dataclass(frozen=True)
class Backend:
    """Attention and coding in plain XLA, on any device.

    `pallas_kernels.Backend` takes the fused kernels where they apply. A subclass is a frozen
    dataclass too: passes keep their backend as a static part.

    Attributes:
        joins_codes: whether a prefill joins small arrays of a layer's codes into one, see
            `vkq_jax.passes.joined_codes`; not where devices hold parts of each array.
    """

    joins_codes: bool = dataclasses.field(default=True, kw_only=True)

    def attend_cache(
        self,
        query: Float[Array, "B T N H"],
        cache: KVCache,
        layer: Int32[Array, ""] | int,
        **options: Unpack[CacheOptions],
    ) -> AttentionOutput:
        """Attention of `query` over one layer of a cache; options as in `attend_cache`."""
        return attend_cache(query, cache.layer(layer), **options)

    def attend_prompt(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        mask: Bool[Array, "B T S"],
        **options: Unpack[LogitsOptions],
    ) -> Float[Array, "B T N H"]:
        """Attention of a prompt's tokens to each other or to its pictures, in full precision.

        Args:
            query, key, value: with RoPE, unscaled.
            mask: which keys each query sees.
            options: scale and soft-cap of the scores.

        Returns:
            Softmax-weighted values in the query's dtype.
        """
        return attend_dense(query, key, value, mask, **options).output.astype(query.dtype)

    def attention_paid(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        mask: Bool[Array, "#B T T"],
        asking: Bool[Array, "B T"],
        index: Int32[Array, "B V"],
        **options: Unpack[LogitsOptions],
    ) -> Float[Array, "B K V"]:
        """The attention that codes sort a prompt's tokens by, see `attention_of_last_queries`."""
        return attention_of_last_queries(query, key, mask, asking, index, **options)

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
        """Codes one layer's visual tokens.

        Args:
            key, value: of all tokens of the prompt; keys with RoPE.
            index, valid: the visual ones among them, see `vkq_jax.cache.visual.left_pack`.
            quant: settings of both sides.
            tables: of this layer, for codes that need some.
            attention: of the visual ones, from `attention_paid`, for codes that sort them by it.
        """
        return quantize_visual(key, value, index, valid, quant, tables, attention)
