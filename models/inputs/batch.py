"""A batch of prompts, checked on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.checkpoints.foreign_errors import named
from models.families.llava.config import LlavaConfig
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["Inputs", "PromptShape", "to_numpy"]


@dataclasses.dataclass(frozen=True)
class PromptShape:
    """Largest numbers over a batch, padding not counted: what sizes a cache.

    Attributes:
        visual: visual tokens. text: other tokens.
        prefix: tokens up to and including the last visual token. suffix: tokens after it.
    """

    visual: int
    text: int
    prefix: int
    suffix: int


@frozen_pytree
class Inputs:
    """A batch of prompts and their images, as a model takes them.

    Attributes:
        input_ids: tokens, one image token for each visual token.
        mask: False where a position is padding, at either side.
        pixel_values: all images of the batch in the order of their tokens, or None.
        image_token_id: the token whose positions are visual.
        prompt_shape: counts that jit needs as constants; upper bounds after `continuing`.
        bos_token_id: the token that starts a conversation; None where every token is to stay.
    """

    input_ids: Int32[Array, "B T"]
    mask: Bool[Array, "B T"]
    pixel_values: Float[Array, "images 3 size size"] | None = None
    image_token_id: int = static_field(kw_only=True)
    prompt_shape: PromptShape = static_field(kw_only=True)
    bos_token_id: int | None = static_field(kw_only=True, default=None)

    @property
    def positions(self) -> Int32[Array, "B T"]:
        """Position of each token in its prompt; 0 in leading padding."""
        counts = jnp.cumsum(self.mask, axis=-1, dtype=jnp.int32)
        return jnp.maximum(counts - 1, 0)

    @property
    def visual_mask(self) -> Bool[Array, "B T"]:
        """True at visual tokens."""
        return self.input_ids == self.image_token_id

    def continuing(self) -> Inputs:
        """These prompts as a later turn: without the BOS token at their start, if there is one."""
        if self.bos_token_id is None:
            return self
        starts = self.mask & (self.positions == 0) & (self.input_ids == self.bos_token_id)
        # A prompt of nothing else keeps it: a model needs a token to go on from.
        starts &= self.mask.sum(-1, keepdims=True) > 1
        return dataclasses.replace(self, mask=self.mask & ~starts, bos_token_id=None)

    @classmethod
    def from_arrays(
        cls,
        config: LlavaConfig,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        *,
        bos_token_id: int | None = None,
    ) -> Inputs:
        """Checks arrays and puts them on the default device.

        Arrays are NumPy's, JAX's, PyTorch's (of any device and dtype, gradients or not), or nested
        lists.

        Args:
            config: of the model that will take them.
            input_ids: integers [B, T].
            attention_mask: 1 or True where a token counts, [B, T]; all of them by default.
            pixel_values: preprocessed images, finite floats [images, 3, size, size], or None.
            bos_token_id: left out of the start of a prompt that goes on from a cache.

        Raises:
            ValueError: a wrong shape or dtype, an id outside the vocabulary, an empty prompt, a
                mask with a hole, pixels that are not finite, or image tokens that do not match
                the images.
        """
        ids = to_numpy("input_ids", input_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"input_ids: expected integers [B, T], got {ids.dtype} {ids.shape}")
        if ids.size == 0:
            raise ValueError(f"empty prompt: input_ids has shape {ids.shape}")
        mask = _check_mask(attention_mask, ids.shape)
        image_token = config.image_token_id
        outside = (ids < 0) | (ids >= config.text.vocab_size) & (ids != image_token)
        if outside.any():
            raise ValueError(
                f"input_ids: expected ids in [0, {config.text.vocab_size}), got {ids[outside][0]}"
            )
        images = None if pixel_values is None else _check_images(config, pixel_values)
        visual = ids == image_token
        if (visual & ~mask).any():
            raise ValueError("input_ids: an image token lies in the padding")
        _check_image_tokens(config, int(visual.sum()), 0 if images is None else len(images))
        return cls(
            input_ids=jnp.asarray(ids, jnp.int32),
            mask=jnp.asarray(mask),
            pixel_values=None if images is None else jnp.asarray(images),
            image_token_id=image_token,
            prompt_shape=_prompt_shape(visual, mask),
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


def _check_images(config: LlavaConfig, pixel_values: Any) -> np.ndarray:
    images = to_numpy("pixel_values", pixel_values)
    size = config.vision.image_size
    # jnp's notion of floating knows bfloat16, NumPy's does not.
    if images.shape[1:] != (3, size, size) or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"pixel_values: expected floats [images, 3, {size}, {size}], "
            f"got {images.dtype} {images.shape}"
        )
    if not len(images):
        raise ValueError("pixel_values: no image; pass None for a prompt without images")
    with np.errstate(over="ignore"):
        images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise ValueError("pixel_values: expected finite float32 values, got NaN or infinite ones")
    return images


def _check_image_tokens(config: LlavaConfig, tokens: int, images: int) -> None:
    per_image = config.vision.num_features
    if tokens == images * per_image:
        return
    counts = (
        f"got {images} images, which need {images * per_image} image tokens "
        f"({per_image} each), and {tokens} image tokens (id {config.image_token_id})"
    )
    if tokens == 0:
        raise ValueError(f"no image token for an image: {counts}")
    if images == 0:
        raise ValueError(f"image tokens without an image: {counts}")
    more = "images than tokens" if tokens < images * per_image else "tokens than images"
    raise ValueError(f"more {more}: {counts}")


def _prompt_shape(visual: np.ndarray, mask: np.ndarray) -> PromptShape:
    # Counting visual tokens from the right tells which positions have none behind them.
    behind = np.cumsum(visual[:, ::-1], axis=-1)[:, ::-1] > 0
    return PromptShape(
        visual=int(visual.sum(-1).max()),
        text=int((mask & ~visual).sum(-1).max()),
        prefix=int((mask & behind).sum(-1).max()),
        suffix=int((mask & ~behind).sum(-1).max()),
    )
