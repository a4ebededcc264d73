"""Attention and coding where devices share KV heads and hold parts of their sequences."""

from __future__ import annotations

import dataclasses
import functools
from typing import Unpack

import jax
import jax.numpy as jnp

import pallas_kernels
import vkq_jax.attention.post_scaled
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.backend import Backend, CacheOptions, LogitsOptions
from vkq_jax.attention.post_scaled import AttentionOutput, merge, score_range
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.split_tensor import SplitTensor
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.score_maps import score_map
from vkq_jax.sharding.bank_parts import part_of_cache, parts_to_kernel_layout, split_bank, take_part
from vkq_jax.sharding.specs import CacheAxes

__all__ = ["SplitBackend"]


@dataclasses.dataclass(frozen=True)
class SplitBackend(Backend):
    """Another backend, of devices each of which holds one part of every bank.

    Attributes:
        inner: attends to a part, and codes.
        axes: how attention is split; devices along `axes.parts` hold the parts of a sequence, and
            each asks for query heads of its own, or all of them for all.
        on_device: whether it runs in `shard_map`, on the arrays of one device. Outside it codes all
            parts, which says what shapes there are, and attends to nothing.
    """

    inner: Backend
    axes: CacheAxes
    on_device: bool = False

    def attend_cache(
        self,
        query: Float[Array, "B T N H"],
        cache: KVCache,
        layer: Int32[Array, ""] | int,
        **options: Unpack[CacheOptions],
    ) -> AttentionOutput:
        """Attention of this device's query heads to all parts.

        Each device attends to its part with the queries of all of them, and sends every other one
        the results of its heads (one all-gather, one all-to-all). Where all devices have all heads
        there is nothing to gather, and all get all results (one all-gather).
        """
        assert self.on_device
        number = jax.lax.axis_index(self.axes.parts)
        queries = query
        if self._own_heads:
            queries = jax.lax.all_gather(query, self.axes.parts, axis=2, tiled=True)
        own, options["visible_text"], options["starts"] = part_of_cache(
            cache, number, options["visible_text"], options["starts"]
        )
        if cache.visual and cache.quant.calibration is not None and cache.score_map is None:
            # The range of a query's scores is that over all parts.
            taken = own.layer(layer)
            gamma, delta = score_range(
                queries,
                taken,
                starts=options["starts"],
                logits_scale=options["logits_scale"],
                logits_soft_cap=options["logits_soft_cap"],
            )
            gamma, delta = jax.lax.pmax(jnp.stack([-gamma, delta]), self.axes.parts)
            mapped, skipped = score_map(-gamma, delta, cache.quant.calibration)
            taken = dataclasses.replace(taken, score_map=mapped)
            attended = vkq_jax.attention.post_scaled.attend_cache(queries, taken, **options)
            counted = skipped.sum((1, 2), dtype=jnp.int32)
            if self._own_heads:  # the devices' counts are summed up
                counted = jnp.where(number == 0, counted, 0)
        else:
            attended = self.inner.attend_cache(queries, own, layer, **options)
            counted = attended.calibration_skipped
        return self._merged(attended, counted)

    def attend_prompt(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        mask: Bool[Array, "B T S"],
        **options: Unpack[LogitsOptions],
    ) -> Float[Array, "B T N H"]:
        """Attention of this device's query heads to a whole prompt, which no device has to ask for.

        See `vkq_jax.Backend`.
        """
        return self.inner.attend_prompt(query, key, value, mask, **options)

    def attention_paid(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        mask: Bool[Array, "#B T T"],
        asking: Bool[Array, "B T"],
        index: Int32[Array, "B V"],
        **options: Unpack[LogitsOptions],
    ) -> Float[Array, "B K V"]:
        """The attention that the query heads of all devices pay, the same on each device."""
        own = self.inner.attention_paid(query, key, mask, asking, index, **options)
        return jax.lax.psum(own, self.axes.parts) if self._own_heads and self.on_device else own

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
        """Codes one layer's visual tokens; a device keeps its own part.

        Its codes are those of the whole: each device has all keys and values of its head, codes
        them and sends nothing.
        """
        whole = self.inner.quantize(key, value, index, valid, quant, tables, attention)
        bank = split_bank(whole, self.axes.num_parts)
        if not isinstance(bank.key, SplitTensor):
            return bank
        numbers = list(range(self.axes.num_parts))
        if self.on_device:
            numbers = [jax.lax.axis_index(self.axes.parts)]
            bank = take_part(bank, numbers[0], axis=2)
        return parts_to_kernel_layout(bank, numbers, 2, self.to_kernel_layout)

    def to_kernel_layout(self, bank: VisualBank) -> VisualBank:
        """See `pallas_kernels.to_kernel_layout`."""
        implementation = getattr(self.inner, "implementation", None)
        return pallas_kernels.to_kernel_layout(bank, implementation=implementation)

    @property
    def _own_heads(self) -> bool:
        """Whether devices along `axes.parts` have query heads of their own."""
        return self.axes.heads != self.axes.kv_heads

    def _merged(self, attended: AttentionOutput, counted: Int32[Array, "B"]) -> AttentionOutput:
        """The results of all devices for the heads of this one, merged."""
        found = jnp.concatenate([attended.output, attended.logsumexp[..., None]], axis=-1)
        if self._own_heads:
            split = found.reshape(*found.shape[:2], self.axes.num_parts, -1, found.shape[-1])
            split = jax.lax.all_to_all(split, self.axes.parts, split_axis=2, concat_axis=2)
        else:
            split = jax.lax.all_gather(found, self.axes.parts, axis=2)
        none = jnp.zeros_like(counted)
        parts = (AttentionOutput(x[..., :-1], x[..., -1], none) for x in jnp.moveaxis(split, 2, 0))
        return dataclasses.replace(functools.reduce(merge, parts), calibration_skipped=counted)
