"""The pass of new text tokens through the layers."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.backend import Backend
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.passes import pass_checks as checks
from vkq_jax.passes.layer_step import LayerStep, Made
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.validation import static_layer

__all__ = ["Decode", "start_decode"]


@frozen_pytree
class Decode:
    """New text tokens between two layers: carry it through a Python loop or `lax.scan`.

    Attributes:
        positions: RoPE positions of queries and keys.
        order: number of each token in its whole sequence.
        valid: tokens that are written; the others' attention means nothing.
        unfinished: the cache with the new text of the layers so far; `finish` gives the whole one.
        visible: entries of the text bank that each token sees.
        skipped: calibrations of scores that the guard left out, of each sequence.
        fits: sequences that have room; attention of the others is NaN.
        done: layers that have attended.
        backend: see `vkq_jax.begin_decode`.
    """

    positions: Int32[Array, "B T"]
    order: Int32[Array, "B T"]
    valid: Bool[Array, "B T"]
    unfinished: KVCache
    visible: Int32[Array, "B T"]
    skipped: Int32[Array, "B"]
    fits: Bool[Array, "B"]
    done: Bool[Array, "L"] | Bool[np.ndarray, "L"]
    backend: Backend = static_field(kw_only=True)

    @checked
    def attend(
        self,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        *,
        window: int | None = None,
        starts: Starts | None = None,
        logits_scale: float | None = None,
        logits_soft_cap: float | None = None,
        kv_shared: bool = False,
    ) -> tuple[Float[Array, "B T N H"], Decode]:
        """One layer: writes the new tokens, and attends to all that the cache then holds.

        Args:
            layer: its number, traced or not.
            query, key: with RoPE at `positions`, not scaled; N is a multiple of K, query heads
                grouped by KV head.
            value: as the model makes them.
            window: how many tokens each one sees, itself the last; needs `keep_indices`.
            starts: instead of `window`, where what each query sees begins.
            logits_scale: H ** -0.5 by default.
            logits_soft_cap: see `vkq_jax.attention.soft_cap`.
            kv_shared: this layer reads the keys and values of `layer`, which has attended:
                nothing is written.

        Returns:
            Attention in the query's dtype, and the pass for the next layer. A sequence that has no
            room in the cache is NaN.

        Raises:
            ValueError: tensors or a layer that do not fit the cache, or both of window and starts.
        """
        checks.check_heads(query, key, value, self.unfinished, self.valid.shape[1])
        number = static_layer(layer, self.unfinished.num_layers)
        step = LayerStep(layer, number, key, value)
        before = self if kv_shared else self.before(step)
        output, made = before.compute(
            step,
            query,
            window=window,
            starts=starts,
            logits_scale=logits_scale,
            logits_soft_cap=logits_soft_cap,
        )
        return checks.spoil(output, self.fits).astype(query.dtype), before.after(step, made)

    def before(self, step: LayerStep) -> Decode:
        """The pass that a layer attends in, whose text is written."""
        valid = checks.if_own(self.valid, step.own)
        text = self.unfinished.text.write(step.layer, *step.tokens, valid)
        return dataclasses.replace(
            self,
            unfinished=dataclasses.replace(self.unfinished, text=text),
            done=checks.mark_done(self.done, step.layer, step.number, step.own),
        )

    def compute(
        self,
        step: LayerStep,
        query: Float[Array, "B T N H"],
        *,
        window: int | None = None,
        starts: Starts | None = None,
        logits_scale: float | None = None,
        logits_soft_cap: float | None = None,
    ) -> tuple[Float[Array, "B T N H"], Made]:
        """Attention of `attend`, float32, to what is written, and what else comes of the layer."""
        attended = self.backend.attend_cache(
            query,
            self.unfinished,
            step.layer,
            visible_text=self.visible,
            starts=checks.settle_starts(self.unfinished, self.order, window, starts),
            logits_scale=logits_scale,
            logits_soft_cap=logits_soft_cap,
        )
        return attended.output, (attended.calibration_skipped, None)

    def nothing_made(self) -> Made:
        """The result of a layer that belongs to another pass: zeros."""
        return jnp.zeros_like(self.skipped), None

    def after(self, step: LayerStep, made: Made) -> Decode:
        """The pass after a layer, with more calibrations that the guard left out."""
        skipped, _ = made
        return dataclasses.replace(self, skipped=self.skipped + skipped)

    def finish(self) -> KVCache:
        """The cache with the new tokens in it, once every layer has attended.

        Raises:
            ValueError: a layer has not. Inside jit that is known for a Python loop over layers
                with plain integers, not for a traced loop.
        """
        checks.check_all_done(self.done)
        cache = self.unfinished
        skipped = jnp.where(self.valid.any(-1), self.skipped, 0)
        return dataclasses.replace(
            cache,
            text=cache.text.advance(self.valid, self.order),
            position=cache.position + self.valid.sum(-1, dtype=jnp.int32),
            calibration_skipped=cache.calibration_skipped + skipped,
        )


def start_decode(cache: KVCache, valid: Bool[Array, "B T"] | None, backend: Backend) -> Decode:
    """`vkq_jax.begin_decode` on a cache of one setting; arguments and errors are its own."""
    if valid is None:
        valid = jnp.ones((cache.position.shape[0], 1), bool)
    valid = checks.check_mask("valid", valid, cache)
    count = jnp.cumsum(valid, axis=-1, dtype=jnp.int32)
    visible = cache.text.length[:, None] + count
    capacity = cache.text.cache_length
    # A sequence that has ended needs no room, whatever its cache holds.
    fits = (visible[:, -1] <= capacity) | ~valid.any(-1)
    checks.check_fits(
        fits, f"a new token has no room in cache_length={capacity}: grow(cache, cache_length)"
    )
    rank = jnp.maximum(count - 1, 0)
    return Decode(
        cache.position[:, None] + rank,
        cache.num_tokens[:, None] + rank,
        valid,
        cache,
        visible,
        jnp.zeros_like(cache.calibration_skipped),
        fits,
        checks.nothing_done(cache),
        backend=backend,
    )
