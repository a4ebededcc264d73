"""Cross-attention: tokens attend to pictures that no token of the prompt stands for.

Such layers have static visual banks and no text. A prompt attends to its own pictures in full
precision and to those of earlier turns as they are coded; text that is generated, to codes alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.backend import Backend, LogitsOptions
from vkq_jax.attention.post_scaled import attend_dense, merge
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import LayeredCache
from vkq_jax.cache.visibility import Starts, window_starts
from vkq_jax.cache.visual import left_pack
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.passes import pass_checks as checks
from vkq_jax.passes.coding import code_layer, coding_room, nothing_coded, put_coded
from vkq_jax.passes.joined_codes import Coded, codes_of_all_layers
from vkq_jax.passes.layer_step import LayerStep, Made
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.slots import filled
from vkq_jax.validation import static_layer

__all__ = ["CrossPass", "PromptPictures", "start_cross"]


@frozen_pytree
class PromptPictures:
    """A prompt's pictures for cross-attention layers, in V places for their tokens.

    Pictures that are seen together have the same number: that of the prompt's token from which on
    the first of them is seen. A token sees the pictures with the last number up to its own, or what
    earlier turns showed last.

    Attributes:
        kept: places whose tokens are coded; the others are padding, or seen by this prompt alone.
        number: of each place.
        shown: number of what each of the T tokens sees; -1: none of these pictures.
        mask: the places that a token sees that sees nothing of earlier turns: those of `shown`, or
            whatever else the model lets it attend to.
        num_kept: most kept places of a sequence, the size of the new bank.
    """

    kept: Bool[Array, "B V"]
    number: Int32[Array, "B V"]
    shown: Int32[Array, "B T"]
    mask: Bool[Array, "B T V"]
    num_kept: int = static_field()


@frozen_pytree
class CrossPass:
    """New tokens between two cross-attention layers. Part of a `LayeredPrefill` or `LayeredDecode`.

    Attributes:
        unfinished: the cache of these layers; `finish` gives the new one.
        sees: tokens that see a picture.
        starts: where what each token sees of earlier banks begins.
        mask: places of the prompt's own pictures that each token sees; None without pictures.
        number: number in the whole sequence of each place, see `PromptPictures`.
        coded, index, taken, skipped, done, backend: as in `Prefill`.
    """

    unfinished: KVCache
    sees: Bool[Array, "B T"]
    starts: Starts
    mask: Bool[Array, "B T V"] | None
    number: Int32[Array, "B V"] | None
    coded: Coded | None
    index: Int32[Array, "B C"] | None
    taken: Bool[Array, "B C"] | None
    skipped: Int32[Array, "B"]
    done: Bool[Array, "L"] | Bool[np.ndarray, "L"]
    backend: Backend = static_field(kw_only=True)

    @property
    def is_empty(self) -> bool:
        """Whether no sequence has a picture, so that the layers are left out."""
        return self.mask is None and not self.unfinished.visual

    def attend(
        self,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B V K H"] | None = None,
        value: Float[Array, "B V K H"] | None = None,
        *,
        logits_scale: float | None = None,
        logits_soft_cap: float | None = None,
    ) -> tuple[Float[Array, "B T N H"], CrossPass]:
        """One layer: attention to pictures, those of the prompt coded on the way.

        Args:
            layer: its place among the cross-attention layers, traced or not.
            query: not scaled.
            key, value: of the prompt's pictures, if it has any.
            logits_scale: H ** -0.5 by default.
            logits_soft_cap: see `vkq_jax.attention.soft_cap`.

        Returns:
            Attention in the query's dtype, 0 where a token sees nothing; and the pass after it.

        Raises:
            ValueError: keys and values without pictures or the reverse, or tensors that do not fit.
        """
        step = LayerStep(layer, static_layer(layer, self.unfinished.num_layers), key, value)
        output, made = self.compute(
            step, query, logits_scale=logits_scale, logits_soft_cap=logits_soft_cap
        )
        return output, self.after(step, made)

    def before(self, step: LayerStep) -> CrossPass:
        """The pass that a layer attends in."""
        return self

    def nothing_made(self) -> Made:
        """The result of a layer that belongs to another pass: zeros."""
        return jnp.zeros_like(self.skipped), nothing_coded(self.coded)

    def compute(
        self,
        step: LayerStep,
        query: Float[Array, "B T N H"],
        *,
        logits_scale: float | None = None,
        logits_soft_cap: float | None = None,
    ) -> tuple[Float[Array, "B T N H"], Made]:
        """Attention of `attend`, and what else comes of the layer."""
        layer, key, value = step.layer, step.key, step.value
        self._check(query, key, value)
        scores: LogitsOptions = {
            "logits_scale": logits_scale,
            "logits_soft_cap": logits_soft_cap,
        }
        skipped, coded, earlier = jnp.zeros_like(self.skipped), None, None
        if self.unfinished.visual:
            nothing = jnp.zeros(query.shape[:2], jnp.int32)
            earlier = self.backend.attend_cache(
                query,
                self.unfinished,
                layer,
                visible_text=nothing,
                starts=self.starts,
                **scores,
            )
            skipped = earlier.calibration_skipped
        if key is None or value is None:
            assert earlier is not None
            output = earlier.output.astype(query.dtype)
        else:
            output = self._attend_prompt(query, key, value, earlier, scores)
            if self.coded is not None:
                assert self.index is not None
                assert self.taken is not None
                output, coded = code_layer(
                    self.backend,
                    self.unfinished,
                    layer,
                    key,
                    value,
                    self.index,
                    self.taken,
                    output,
                )
        return output, (skipped, coded)

    def after(self, step: LayerStep, made: Made) -> CrossPass:
        """The pass after a layer, codes put in their place."""
        skipped, coded = made
        if coded is not None:
            coded = put_coded(self.coded, step.layer, coded, step.own)
        return dataclasses.replace(
            self,
            coded=coded,
            skipped=self.skipped + skipped,
            done=checks.mark_done(self.done, step.layer, step.number, step.own),
        )

    def finish(self, position: Int32[Array, "B"], valid: Bool[Array, "B T"]) -> KVCache:
        """The cache with the prompt's pictures in it.

        Args:
            position: RoPE position of the next token.
            valid: tokens of the pass that are no padding.

        Raises:
            ValueError: a layer has not attended, and that is known.
        """
        if not self.is_empty:
            checks.check_all_done(self.done)
        cache, banks = self.unfinished, self.unfinished.visual
        if self.coded is not None:
            assert self.number is not None
            assert self.index is not None
            assert self.taken is not None
            key, value, class_map = codes_of_all_layers(self.coded)
            numbers = jnp.take_along_axis(self.number, self.index, axis=1)
            numbers = jnp.where(self.taken, numbers, 0)
            length = self.taken.sum(-1, dtype=jnp.int32)
            banks = (*banks, VisualBank(key, value, length, numbers, class_map))
        skipped = jnp.where(valid.any(-1), self.skipped, 0)
        return dataclasses.replace(
            cache,
            visual=banks,
            position=position,
            calibration_skipped=cache.calibration_skipped + skipped,
        )

    def _attend_prompt(
        self, query: Array, key: Array, value: Array, earlier: Any, scores: LogitsOptions
    ) -> Array:
        assert self.mask is not None
        if earlier is None:
            output = self.backend.attend_prompt(query, key, value, self.mask, **scores)
            return jnp.where(self.mask.any(-1)[..., None, None], output, jnp.zeros_like(output))
        attended = merge(earlier, attend_dense(query, key, value, self.mask, **scores))
        return attended.output.astype(query.dtype)

    def _check(self, query: Array, key: Array | None, value: Array | None) -> None:
        if self.is_empty:
            raise ValueError("attend_cross: no sequence has a picture; leave the layer out")
        given = key is not None and value is not None
        if given != (self.mask is not None):
            raise ValueError(
                "attend_cross: expected keys and values of the pictures that begin_prefill got, "
                f"{'got none' if self.mask is not None else 'which got none'}"
            )
        if self.mask is not None and key is not None and value is not None:
            checks.check_heads(
                query,
                key,
                value,
                self.unfinished,
                self.sees.shape[1],
                places=self.mask.shape[-1],
            )


def start_cross(
    cache: LayeredCache, pictures: PromptPictures | None, *, tokens: int, backend: Backend
) -> tuple[CrossPass, ...]:
    """Passes of `tokens` new tokens, with new pictures if there are any, of each cross part."""
    parts, num_tokens = cache.cross_cache.parts, cache.num_tokens
    newest = _newest(parts[0])[:, None]
    newest = jnp.broadcast_to(newest, (num_tokens.shape[0], tokens))
    number = index = taken = mask = None
    shown = newest
    if pictures is not None:
        past = num_tokens[:, None]
        shown = jnp.where(pictures.shown >= 0, pictures.shown + past, newest)
        number = pictures.number + past
        # Pictures of earlier turns come before what a model does where nothing is shown.
        own = (pictures.shown >= 0) | (newest < 0)
        mask = pictures.mask & own[..., None]
        if pictures.num_kept:
            index, taken = left_pack(pictures.kept, pictures.num_kept)

    def start(part: KVCache) -> CrossPass:
        coded = None
        if index is not None and taken is not None and mask is not None:
            coded = coding_room(backend, part, index, taken, mask.shape[-1], with_attention=False)
        return CrossPass(
            unfinished=part,
            sees=shown >= 0,
            starts=window_starts(part, shown, 1),
            mask=mask,
            number=number,
            coded=coded,
            index=index,
            taken=taken,
            skipped=jnp.zeros_like(part.calibration_skipped),
            done=checks.nothing_done(part),
            backend=backend,
        )

    return tuple(map(start, parts))


def _newest(cache: KVCache) -> Int32[Array, "b"]:
    """The number of what each sequence was shown last; -1 for nothing."""
    newest = jnp.full_like(cache.position, -1)
    for bank in cache.visual:
        assert bank.index is not None
        held = filled(bank.length, bank.index.shape[-1])
        numbers = jnp.where(held, bank.index, jnp.full_like(bank.index, -1))
        newest = jnp.maximum(newest, numbers.max(-1))
    return newest
