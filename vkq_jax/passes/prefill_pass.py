"""A prompt's pass through the layers, visual tokens coded layer by layer.

Prompt positions attend to each other in full precision, and to what the cache holds of earlier
turns as it is coded. A layer's visual keys and values are coded before the next layer runs, so that
no more than one layer's full-precision visual cache ever exists.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.backend import Backend, LogitsOptions
from vkq_jax.attention.post_scaled import attend_dense, merge
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.cache.visual import left_pack
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.passes import pass_checks as checks
from vkq_jax.passes.coding import code_layer, coding_room, nothing_coded, put_coded
from vkq_jax.passes.joined_codes import Coded, codes_of_all_layers
from vkq_jax.passes.layer_step import LayerStep, Made
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.validation import static_layer

__all__ = ["Prefill", "start_prefill"]


@frozen_pytree
class Prefill:
    """A prompt between two layers: carry it through a Python loop, `lax.scan` or `fori_loop`.

    Attributes:
        positions: RoPE positions of queries and keys; three axes with M-RoPE.
        order: number of each token in its whole sequence.
        valid: which tokens are no padding.
        visual: which ones are coded.
        unfinished: the cache with the text of the layers so far; `finish` gives the whole one.
        coded: keys, values and class map of the layers so far, stacked; None without visual tokens.
        index, taken: the visual tokens moved to the front, see `vkq_jax.cache.visual.left_pack`.
        advance: how far RoPE positions move on.
        skipped: calibrations of scores that the guard left out, of each sequence.
        fits: sequences that have room; attention of the others is NaN.
        done: layers that have attended.
        first_turn, keep_positions, backend: see `vkq_jax.begin_prefill`.
    """

    positions: Int32[Array, "B T *axes"]
    order: Int32[Array, "B T"]
    valid: Bool[Array, "B T"]
    visual: Bool[Array, "B T"]
    unfinished: KVCache
    coded: Coded | None
    index: Int32[Array, "B V"]
    taken: Bool[Array, "B V"]
    advance: Int32[Array, "B"]
    skipped: Int32[Array, "B"]
    fits: Bool[Array, "B"]
    done: Bool[Array, "L"] | Bool[np.ndarray, "L"]
    first_turn: bool = static_field(kw_only=True)
    keep_positions: bool = static_field(kw_only=True)
    backend: Backend = static_field(kw_only=True)

    @checked
    def attend(
        self,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        *,
        mask: Bool[Array, "#B T T"] | None = None,
        window: int | None = None,
        starts: Starts | None = None,
        logits_scale: float | None = None,
        logits_soft_cap: float | None = None,
        kv_shared: bool = False,
    ) -> tuple[Float[Array, "B T N H"], Prefill]:
        """One layer: attention of the prompt, its text written and its visual tokens coded.

        Args:
            layer: its number, traced or not.
            query, key: with RoPE at `positions`, not scaled; N is a multiple of K, query heads
                grouped by KV head.
            value: as the model makes them.
            mask: which token (last axis) of the prompt each token sees, padding apart; by default
                itself and all before it.
            window: how many tokens each one sees, itself the last; needs `keep_indices`.
            starts: instead of `window`, where what each query sees of earlier turns begins.
            logits_scale: H ** -0.5 by default.
            logits_soft_cap: see `vkq_jax.attention.soft_cap`.
            kv_shared: this layer reads the keys and values of `layer`, which has attended:
                nothing is written or coded.

        Returns:
            Attention in the query's dtype, and the pass for the next layer. A sequence that has no
            room in the cache is NaN.

        Raises:
            ValueError: tensors or a layer that do not fit the cache, or both of window and starts.
        """
        number = static_layer(layer, self.unfinished.num_layers)
        step = LayerStep(layer, number, key, value)
        output, made = self.compute(
            step,
            query,
            mask=mask,
            window=window,
            starts=starts,
            logits_scale=logits_scale,
            logits_soft_cap=logits_soft_cap,
            kv_shared=kv_shared,
        )
        output = checks.spoil(output, self.fits)
        if kv_shared:
            return output, dataclasses.replace(self, skipped=self.skipped + made[0])
        return _in_step(output, self.after(step, made))

    def before(self, step: LayerStep) -> Prefill:
        """The pass that a layer attends in, whose text is not in the cache yet."""
        return self

    def compute(
        self,
        step: LayerStep,
        query: Float[Array, "B T N H"],
        *,
        mask: Bool[Array, "#B T T"] | None = None,
        window: int | None = None,
        starts: Starts | None = None,
        logits_scale: float | None = None,
        logits_soft_cap: float | None = None,
        kv_shared: bool = False,
    ) -> tuple[Float[Array, "B T N H"], Made]:
        """Attention of `attend`, and what else comes of the layer."""
        cache, layer, (key, value) = self.unfinished, step.layer, step.tokens
        checks.check_heads(query, key, value, cache, self.valid.shape[1])
        starts = checks.settle_starts(cache, self.order, window, starts)
        mask = self._mask(mask, window)
        scores: LogitsOptions = {
            "logits_scale": logits_scale,
            "logits_soft_cap": logits_soft_cap,
        }
        skipped = jnp.zeros_like(self.skipped)
        if self.first_turn:
            output = self.backend.attend_prompt(query, key, value, mask, **scores)
        else:
            past = jnp.broadcast_to(cache.text.length[:, None], self.valid.shape)
            earlier = self.backend.attend_cache(
                query, cache, layer, visible_text=past, starts=starts, **scores
            )
            attended = merge(earlier, attend_dense(query, key, value, mask, **scores))
            output, skipped = attended.output.astype(query.dtype), attended.calibration_skipped
        if self.coded is None or kv_shared:
            return output, (skipped, None)
        attention = None
        if cache.quant.needs_attention:
            attention = self.backend.attention_paid(
                query, key, mask, self.valid & ~self.visual, self.index, **scores
            )
        if cache.key_bias is not None:
            key = cache.key_bias.of_layer(layer).taken_out(key, self.positions)
        output, coded = code_layer(
            self.backend, cache, layer, key, value, self.index, self.taken, output, attention
        )
        return output, (skipped, coded)

    def nothing_made(self) -> Made:
        """The result of a layer that belongs to another pass: zeros."""
        return jnp.zeros_like(self.skipped), nothing_coded(self.coded)

    def after(self, step: LayerStep, made: Made) -> Prefill:
        """The pass after a layer, text written and codes put in their place."""
        skipped, coded = made
        valid = checks.if_own(self.valid & ~self.visual, step.own)
        text = self.unfinished.text.write(step.layer, *step.tokens, valid)
        return dataclasses.replace(
            self,
            unfinished=dataclasses.replace(self.unfinished, text=text),
            coded=put_coded(self.coded, step.layer, coded, step.own),
            skipped=self.skipped + skipped,
            done=checks.mark_done(self.done, step.layer, step.number, step.own),
        )

    def finish(self) -> KVCache:
        """The cache with this prompt in it, once every layer has attended.

        Raises:
            ValueError: a layer has not. Inside jit that is known for a Python loop over layers
                with plain integers, not for a traced loop.
        """
        checks.check_all_done(self.done)
        cache, banks = self.unfinished, self.unfinished.visual
        if self.coded is not None:
            key, value, class_map = codes_of_all_layers(self.coded)
            numbers = positions = None
            if cache.keeps_indices:
                numbers = jnp.take_along_axis(self.order, self.index, axis=1)
            if self.keep_positions:
                axes = (1,) * (self.positions.ndim - 2)
                wide = self.index.reshape(*self.index.shape, *axes)
                positions = jnp.take_along_axis(self.positions, wide, axis=1)
            length = self.taken.sum(-1, dtype=jnp.int32)
            banks = (*banks, VisualBank(key, value, length, numbers, class_map, positions))
        return dataclasses.replace(
            cache,
            visual=banks,
            text=cache.text.advance(self.valid & ~self.visual, self.order),
            position=cache.position + self.advance,
            calibration_skipped=cache.calibration_skipped + self.skipped,
        )

    def _mask(self, mask: Bool[Array, "#B T T"] | None, window: int | None) -> Bool[Array, "B T T"]:
        tokens = self.valid.shape[1]
        if mask is None:
            mask = jnp.tril(jnp.ones((1, tokens, tokens), bool))
        if window is not None:
            mask = mask & (self.order[:, :, None] - self.order[:, None] < window)
        return mask & self.valid[:, None]


def _in_step(output: Array, after: Prefill) -> tuple[Array, Prefill]:
    """Both, of which neither is there before a layer's tokens are in the cache.

    Otherwise XLA puts off the writing, and keeps the keys and values of all layers for it.
    """
    cache, text = after.unfinished, after.unfinished.text
    # Not the lengths, of which all layers make the same slots.
    stored = (text.key, text.value, text.key_scale, text.value_scale)
    output, stored, coded = jax.lax.optimization_barrier((output, stored, after.coded))
    names = ("key", "value", "key_scale", "value_scale")
    text = dataclasses.replace(text, **dict(zip(names, stored, strict=True)))
    cache = dataclasses.replace(cache, text=text)
    return output, dataclasses.replace(after, unfinished=cache, coded=coded)


def start_prefill(
    cache: KVCache,
    visual: Bool[Array, "B T"],
    *,
    valid: Bool[Array, "B T"] | None,
    num_visual: int | None,
    positions: Int32[Array, "B T *axes"] | None,
    advance: Int32[Array, "B"] | None,
    first_turn: bool,
    keep_positions: bool,
    backend: Backend,
) -> Prefill:
    """`vkq_jax.begin_prefill` on a cache of one setting; arguments and errors are its own."""
    visual = checks.check_mask("visual", visual, cache)
    tokens = visual.shape[1]
    valid = jnp.ones_like(visual) if valid is None else valid
    valid = checks.check_mask("valid", valid, cache, tokens)
    visual = visual & valid
    count = visual.sum(-1, dtype=jnp.int32)
    if num_visual is None:
        if isinstance(count, Tracer):
            raise ValueError(
                "num_visual: expected the most visual tokens of a sequence inside jit, where they "
                "cannot be counted; got None"
            )
        num_visual = int(count.max())
    total = valid.sum(-1, dtype=jnp.int32)
    after, capacity = cache.text.length + total - count, cache.text.cache_length
    fits = jnp.ones_like(valid[:, 0])
    for good, problem in (
        (after <= capacity, f"its text has no room in cache_length={capacity}: grow the cache"),
        (count <= num_visual, f"it has more visual tokens than num_visual={num_visual}"),
        (~jnp.bool_(first_turn) | (cache.num_tokens == 0), "first_turn of a cache with tokens"),
    ):
        checks.check_fits(good, problem)
        fits = fits & good
    rank = jnp.maximum(jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, 0)
    if (positions is None) != (advance is None):
        raise ValueError("positions and advance belong together, got one of them")
    if positions is None or advance is None:
        positions, advance = rank, total
    if positions.shape[:2] != visual.shape or advance.shape != total.shape:
        raise ValueError(
            f"positions must be [B, T, ...] = {[*visual.shape, '...']} and advance [B], got "
            f"{list(positions.shape)} and {list(advance.shape)}"
        )
    index, taken = left_pack(visual, num_visual)
    return Prefill(
        positions + cache.position.reshape(-1, *(1,) * (positions.ndim - 1)),
        rank + cache.num_tokens[:, None],
        valid,
        visual,
        cache,
        coding_room(backend, cache, index, taken, tokens, cache.quant.needs_attention)
        if num_visual
        else None,
        index,
        taken,
        advance,
        jnp.zeros_like(cache.calibration_skipped),
        fits,
        checks.nothing_done(cache),
        first_turn=first_turn,
        keep_positions=keep_positions or cache.key_bias is not None,
        backend=backend,
    )
