"""A batch of prompts as a pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.visual import left_pack
from vkq_jax.messages import show
from vkq_jax.passes.cross_pass import PromptPictures
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.structure import check_structure
from vkq_jax.validation import check_type

__all__ = ["Inputs", "PicturePlaces", "PromptShape", "batches_of", "check_inputs"]


@dataclasses.dataclass(frozen=True)
class PromptShape:
    """Largest numbers over a batch, padding not counted: what sizes a cache.

    Attributes:
        visual: visual tokens.
        text: other tokens.
        prefix: tokens up to and including the last visual token.
        suffix: tokens after it.
        cross: visual tokens in cross-attention layers, which are no tokens of a prompt; there a
            picture's one token counts as text, and as the visual token of prefix and suffix.
    """

    visual: int
    text: int
    prefix: int
    suffix: int
    cross: int = 0

    @property
    def has_pictures(self) -> bool:
        """Whether any prompt has a picture."""
        return bool(self.visual or self.cross)


@frozen_pytree
class PicturePlaces:
    """Where a batch's pictures lie in cross-attention layers: V places for each sequence.

    Attributes:
        row: of `image_features`, of each place.
        picture: number of its picture in the sequence; -1 where a place is empty.
        kept: places that later tokens see; the others are seen by tokens before all pictures.
    """

    row: Int32[Array, "B V"]
    picture: Int32[Array, "B V"]
    kept: Bool[Array, "B V"]


@frozen_pytree
class Inputs:
    """A batch of prompts and their pictures, as a model takes them.

    Attributes:
        input_ids: tokens, one image token for each visual token.
        mask: False where a position is padding, at either side.
        visual_mask: True at visual tokens; in models with cross-attention layers, at the one token
            of each picture.
        positions: RoPE positions, from 0 at each prompt's first token; three axes (time, row,
            column) in families with M-RoPE.
        pixel_values: all pictures of the batch in the order of their tokens, of the family's own
            shape ([images, 3, size, size] for LLaVA-1.5), or None.
        vision_layout: a pytree of whatever else the family's vision tower needs of the pictures,
            such as their grids.
        attention_group: tokens of one number, 0 or more, see each other whatever their order; None:
            every token sees itself and those before it.
        places: where pictures lie in cross-attention layers; None without such layers or pictures.
        prompt_shape: counts that jit needs as constants; upper bounds after `continuing`.
        bos_token_id: the token that starts a conversation; None where every token is to stay.
    """

    input_ids: Int32[Array, "B T"]
    mask: Bool[Array, "B T"]
    visual_mask: Bool[Array, "B T"]
    positions: Int32[Array, "B T *axes"]
    pixel_values: Float[Array, "*pictures"] | None = None
    vision_layout: Any = None
    attention_group: Int32[Array, "B T"] | None = None
    places: PicturePlaces | None = None
    prompt_shape: PromptShape = static_field(kw_only=True)
    bos_token_id: int | None = static_field(kw_only=True, default=None)

    @property
    def index(self) -> Int32[Array, "B T"]:
        """Number of each token in its prompt; 0 in leading padding."""
        return jnp.maximum(jnp.cumsum(self.mask, axis=-1, dtype=jnp.int32) - 1, 0)

    @property
    def last_token(self) -> Int32[Array, "B"]:
        """Place of each prompt's last token among T; T - 1 in a row that is all padding."""
        return self.mask.shape[1] - 1 - jnp.argmax(self.mask[:, ::-1], axis=1)

    @property
    def next_position(self) -> Int32[Array, "B"]:
        """The RoPE position that follows each prompt's last token, 0 where there is none.

        With three axes the time does not count: after a picture or clip text goes on at the
        larger of the last token's row and column plus 1, wherever the clip's time has come to.
        """
        last = _like(self.last_token[:, None], self.positions)
        found = jnp.take_along_axis(self.positions, last, axis=1)
        found = found[..., 1:] if found.ndim > 2 else found
        found = found.reshape(len(found), -1).max(axis=1)
        return jnp.where(self.mask.any(axis=1), found + 1, 0)

    def place_features(
        self, features: Float[Array, "features hidden_size"], text: Float[Array, "B T hidden_size"]
    ) -> Float[Array, "B T hidden_size"]:
        """`text`, with row k of the features at the k-th visual token of the batch."""
        visual = self.visual_mask
        # Or XLA fuses the sum into the gather that follows, and adds up anew for every channel.
        row = jax.lax.optimization_barrier(jnp.cumsum(visual.ravel()) - 1).reshape(visual.shape)
        placed = jnp.take(features, row, axis=0, mode="clip").astype(text.dtype)
        return jnp.where(visual[..., None], placed, text)

    def prompt_pictures(self) -> PromptPictures | None:
        """The pictures that each token sees in cross-attention layers; None without pictures.

        A token sees the last picture up to its own; pictures whose tokens follow each other
        directly are seen together. Tokens before all pictures see every place, as in transformers.
        """
        places = self.places
        if places is None:
            return None
        token = self.visual_mask & self.mask
        starts = token & ~jnp.pad(token, ((0, 0), (1, 0)))[:, :-1]
        index = jnp.where(starts, self.index, -1)
        shown = jax.lax.cummax(index, axis=1)
        # The token of each picture tells what is shown with it.
        of_picture, _ = left_pack(token, token.shape[1])
        numbers = jnp.take_along_axis(shown, of_picture, axis=1)
        number = jnp.take_along_axis(numbers, jnp.maximum(places.picture, 0), axis=1)
        begun = jnp.cumsum(token, axis=1, dtype=jnp.int32)[:, :, None] > places.picture[:, None]
        seen = begun & (shown[:, :, None] == number[:, None]) & places.kept[:, None]
        everything = jnp.broadcast_to((places.picture >= 0)[:, None], seen.shape)
        mask = jnp.where((shown < 0)[:, :, None], everything, seen)
        return PromptPictures(places.kept, number, shown, mask, num_kept=self.prompt_shape.cross)

    def map_tokens(self, function: Callable[[Array], Array]) -> Inputs:
        """Every array [B, T, ...] changed alike."""
        return dataclasses.replace(
            self,
            input_ids=function(self.input_ids),
            mask=function(self.mask),
            visual_mask=function(self.visual_mask),
            positions=function(self.positions),
            attention_group=jax.tree.map(function, self.attention_group),
        )

    def take_tokens(self, index: Int32[Array, "B C"], valid: Bool[Array, "B C"]) -> Inputs:
        """The tokens at `index` of each sequence; what is not `valid` becomes padding.

        Positions stay those of the whole prompt.
        """

        def take(values):
            taken = jnp.take_along_axis(values, _like(index, values), axis=1)
            return jnp.where(_like(valid, taken), taken, jnp.zeros((), taken.dtype))

        return self.map_tokens(take)

    def followed_by(self, tokens: Int32[Array, "B S"], valid: Bool[Array, "B S"]) -> Inputs:
        """These prompts with text after them, padding between where there is any."""
        count = jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
        after = self.next_position[:, None] + count
        after = jnp.broadcast_to(
            _like(after, self.positions), after.shape + self.positions.shape[2:]
        )

        def join(first, second):
            return jnp.concatenate([first, second.astype(first.dtype)], axis=1)

        group = self.attention_group
        return dataclasses.replace(
            self,
            input_ids=join(self.input_ids, tokens),
            mask=join(self.mask, valid),
            visual_mask=join(self.visual_mask, jnp.zeros_like(valid)),
            positions=join(self.positions, after),
            attention_group=None if group is None else join(group, jnp.full_like(tokens, -1)),
        )

    def continuing(self) -> Inputs:
        """These prompts as a later turn: without the BOS token at their start, if there is one."""
        if self.pixel_values is None:  # then all is causal, as in transformers
            self = dataclasses.replace(self, attention_group=None)
        if self.bos_token_id is None:
            return self
        starts = self.mask & (self.index == 0) & (self.input_ids == self.bos_token_id)
        # A prompt of nothing else keeps it: a model needs a token to go on from.
        starts &= self.mask.sum(-1, keepdims=True) > 1
        moved = self.positions - _like(starts.any(-1, keepdims=True), self.positions)
        return dataclasses.replace(
            self,
            mask=self.mask & ~starts,
            positions=jnp.maximum(moved, 0),
            bos_token_id=None,
        )


def _like(per_token: Array, values: Array) -> Array:
    """An array [B, T] with the further axes of `values`, of one element each."""
    return per_token.reshape(per_token.shape + (1,) * (values.ndim - per_token.ndim))


def check_inputs(inputs: Any) -> None:
    """Raises ValueError for anything but `Inputs` whose arrays fit together."""
    check_type("inputs", inputs, Inputs, hint="models.prepare")
    check_structure("inputs", inputs)


def batches_of(inputs: Any) -> Iterator[Inputs]:
    """One batch or several from outside, each checked when its turn comes.

    Raises:
        ValueError: something else than `Inputs`.
    """
    try:
        batches: Iterator[Any] = iter(
            [inputs] if isinstance(inputs, Inputs | Mapping | str) else inputs
        )
    except TypeError as error:
        expected = "inputs: expected Inputs (models.prepare) or several of them"
        raise ValueError(f"{expected}, got {show(inputs)}") from error
    for batch in batches:
        check_inputs(batch)
        yield batch
