"""A batch of prompts, checked on the host."""

import warnings
from typing import Any

import jax
import numpy as np

from models.checkpoints.foreign_errors import named
from models.families.base import ModelConfig
from models.families.registry import family_of
from models.inputs.batch import Inputs, PicturePlaces, PromptShape

__all__ = ["inputs_from_arrays", "mask_of_padding", "to_numpy"]


def inputs_from_arrays(
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
    return Inputs(
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


def mask_of_padding(config: ModelConfig, ids: np.ndarray) -> np.ndarray:
    """The mask of prompts that came without one, as transformers' `generate` infers it.

    Padding is the checkpoint's padding token at the ends of a prompt, unless that token ends
    answers, too.

    Args:
        config: of the model that will take them.
        ids: integers [B, T].

    Warns:
        UserWarning: padding cannot be told from tokens, and there may be some.

    Raises:
        ValueError: a padding token inside a prompt.
    """
    pads, tokens = config.pad_token_ids, ~np.isin(ids, config.pad_token_ids)
    if set(pads) & set(config.eos_token_ids) or not pads:
        why = f"token {pads[0]} pads and ends answers" if pads else "there is no pad_token_id"
        if not tokens[:, [0, -1]].all() or (not pads and len(ids) > 1):
            warnings.warn(
                "input_ids without attention_mask: every token counts as one of a prompt, for the "
                f"checkpoint does not tell padding from tokens ({why}); give attention_mask",
                stacklevel=4,
            )
        return np.ones(ids.shape, bool)
    before = np.maximum.accumulate(tokens, axis=-1)
    behind = np.maximum.accumulate(tokens[:, ::-1], axis=-1)[:, ::-1]
    inside = np.argwhere(~tokens & before & behind)
    if len(inside):
        row, column = inside[0]
        raise ValueError(
            f"input_ids: prompt {row} has the padding token {ids[row, column]} inside, at "
            f"{column}: give attention_mask, which says what counts"
        )
    return tokens


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
