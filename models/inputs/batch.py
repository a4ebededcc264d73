"""A batch of prompts, checked on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.checkpoints.foreign_errors import named
from models.families.base import ModelConfig, PicturePlaces
from models.families.registry import family_of
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.visual import left_pack
from vkq_jax.passes.cross_pass import PromptPictures
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["Inputs", "PromptShape", "to_numpy"]


@dataclasses.dataclass(frozen=True)
class PromptShape:
    """Largest numbers over a batch, padding not counted: what sizes a cache.

    Attributes:
        visual: visual tokens. text: other tokens.
        prefix: tokens up to and including the last visual token. suffix: tokens after it.
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
        return _count(self.mask)

    @property
    def next_position(self) -> Int32[Array, "B"]:
        """The RoPE position that follows each prompt's last token, 0 where there is none.

        With three axes the time does not count: behind a picture or clip text goes on at the
        larger of the last token's row and column plus 1, wherever the clip's time has come to.
        """
        last = self.mask.shape[1] - 1 - jnp.argmax(self.mask[:, ::-1], axis=1)
        found = jnp.take_along_axis(self.positions, _like(last[:, None], self.positions), axis=1)
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
        """These prompts with text behind them, padding between where there is any."""
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

    @classmethod
    def from_arrays(
        cls,
        config: ModelConfig,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        *,
        bos_token_id: int | None = None,
        **arrays: Any,
    ) -> Inputs:
        """Checks arrays and puts them on the default device.

        Arrays are NumPy's, JAX's, PyTorch's (of any device and dtype, gradients or not), or nested
        lists.

        Args:
            config: of the model that will take them.
            input_ids: integers [B, T].
            attention_mask: 1 or True where a token counts, [B, T]; all of them by default.
            pixel_values: preprocessed pictures as the family's processor gives them, finite floats
                ([images, 3, size, size] for LLaVA-1.5), or None.
            bos_token_id: left out of the start of a prompt that goes on from a cache.
            **arrays: the other outputs of the family's processor, by its names.

        Raises:
            ValueError: a wrong shape or dtype, an id outside the vocabulary, an empty prompt, a
                mask with a hole, pixels that are not finite, image tokens that do not match the
                pictures, or an array that the family does not take or that is missing.
        """
        ids = to_numpy("input_ids", input_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"input_ids: expected integers [B, T], got {ids.dtype} {ids.shape}")
        if ids.size == 0:
            raise ValueError(f"empty prompt: input_ids has shape {ids.shape}")
        mask = _check_mask(attention_mask, ids.shape)
        visual = np.isin(ids, config.visual_token_ids)
        outside = (ids < 0) | (ids >= config.text.vocab_size) & ~visual
        if outside.any():
            raise ValueError(
                f"input_ids: expected ids in [0, {config.text.vocab_size}), got {ids[outside][0]}"
            )
        family = family_of(config.model_type)
        given = {"pixel_values": pixel_values, **arrays}
        if unknown := sorted(set(given) - set(family.array_names)):
            raise ValueError(
                f"{', '.join(unknown)}: {config.model_type} models take input_ids, attention_mask, "
                f"{', '.join(family.array_names)}"
            )
        pictures = family.visual_inputs(
            config,
            ids,
            mask,
            {name: to_numpy(name, each) for name, each in given.items() if each is not None},
        )
        if (visual & ~mask).any():
            raise ValueError("input_ids: an image token lies in the padding")
        positions = pictures.positions
        if positions is None:
            positions = np.maximum(np.cumsum(mask, -1) - 1, 0)
        # Compiles nothing, which `jnp.asarray` would do for each shape.
        put = jax.device_put
        pixels, group = pictures.pixel_values, pictures.attention_group
        return cls(
            input_ids=put(ids.astype(np.int32)),
            mask=put(mask),
            visual_mask=put(visual),
            positions=put(np.asarray(positions, np.int32)),
            pixel_values=None if pixels is None else put(pixels),
            vision_layout=jax.tree.map(put, pictures.layout),
            attention_group=None if group is None else put(np.asarray(group, np.int32)),
            places=jax.tree.map(put, pictures.places),
            prompt_shape=_prompt_shape(config, visual, mask, pictures.places),
            bos_token_id=bos_token_id,
        )


def to_numpy(name: str, values: Any) -> np.ndarray:
    """An array of any library, or nested lists of numbers or such arrays, in NumPy.

    Raises:
        ValueError: no array can be made of it; `name` is in the message.
    """
    with named(f"{name}: cannot be read as an array"):
        return np.asarray(_without_torch(values))


def _without_torch(values: Any) -> Any:
    if isinstance(values, (list, tuple)):
        return [_without_torch(value) for value in values]
    if not hasattr(values, "detach"):
        return values
    values = values.detach().cpu()
    # NumPy has no bfloat16 and would refuse it; the wider type holds the same values.
    return (values.float() if values.is_floating_point() else values).numpy()


def _like(per_token: Array, values: Array) -> Array:
    """An array [B, T] with the further axes of `values`, of one element each."""
    return per_token.reshape(per_token.shape + (1,) * (values.ndim - per_token.ndim))


def _count(mask: Bool[Array, "B T"]) -> Int32[Array, "B T"]:
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def _check_mask(attention_mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    if attention_mask is None:
        return np.ones(shape, bool)
    mask = to_numpy("attention_mask", attention_mask)
    if mask.shape != shape or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"attention_mask: expected zeros and ones {shape}, got {mask.dtype} {mask.shape}"
        )
    mask = mask.astype(bool)
    if not mask.any(axis=-1).all():
        raise ValueError(f"empty prompt: row {mask.any(axis=-1).argmin()} is all padding")
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=-1)
    if (np.count_nonzero(edges, axis=-1) != 2).any():
        raise ValueError("attention_mask: padding inside a prompt; only its ends may be padded")
    return mask


def _prompt_shape(
    config: ModelConfig, visual: np.ndarray, mask: np.ndarray, places: PicturePlaces | None
) -> PromptShape:
    # Counting visual tokens from the right tells which positions have none behind them.
    behind = np.cumsum(visual[:, ::-1], axis=-1)[:, ::-1] > 0
    coded = visual & (not config.text.cross_layers)
    return PromptShape(
        visual=int(coded.sum(-1).max()),
        text=int((mask & ~coded).sum(-1).max()),
        prefix=int((mask & behind).sum(-1).max()),
        suffix=int((mask & ~behind).sum(-1).max()),
        cross=0 if places is None else int(places.kept.sum(-1).max()),
    )
