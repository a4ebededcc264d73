"""The forward pass of training: pictures and packed rows to scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from models.families.llava.model import LlavaModel
from models.layers.attention import Attend, dense_attention
from models.layers.layer_kinds import by_kind
from models.text.config import TextConfig
from vkq_apps.training.attention import Implementation, fused_attention, row_attention
from vkq_apps.training.encoding import IMAGE_TOKENS
from vkq_apps.training.processor import PIXEL_MEAN, PIXEL_STD
from vkq_jax.array_types import Array, Bool, Float, Shaped

__all__ = ["forward", "normalize", "text_visibility"]

_FUSED_HEAD_DIM = 128
"""Widest heads of cuDNN's attention."""


def normalize(images: Shaped[Array, "B S S 3"], dtype: Any) -> Float[Array, "B 3 S S"]:
    """uint8 pictures as the image processor gives them."""
    mean, std = (255 * jnp.asarray(x, jnp.float32) for x in (PIXEL_MEAN, PIXEL_STD))
    pixels = (images.astype(jnp.float32) - mean) / std
    return pixels.transpose(0, 3, 1, 2).astype(dtype)


def text_visibility(turn: Shaped[Array, "B R"], start: int) -> Bool[Array, "B R S"]:
    """Text sees the `start` tokens of prefix and image, and its own turn up to itself."""
    batch, length = turn.shape
    order = jnp.arange(length)
    own = (turn[:, :, None] == turn[:, None, :]) & (order[:, None] >= order[None, :])[None]
    return jnp.concatenate([jnp.ones((batch, length, start), bool), own], axis=-1)


def forward(
    llava: LlavaModel,
    images: Shaped[Array, "B S S 3"],
    rows: Shaped[Array, "B 5 R"],
    implementation: Implementation,
    *,
    prefix: tuple[int, ...],
    unroll: bool,
) -> tuple[Float[Array, "B R vocab"], Float[Array, "B P width"]]:
    """Scores of the next token at every text position, and the vision tower's features.

    `prefix`: ids before the image. `unroll`: see `models.layers.layer_scan.scan_layers`.
    """
    tokens, turn, position = (rows[:, lane].astype(jnp.int32) for lane in range(3))
    batch = tokens.shape[0]
    pixels = normalize(images, llava.text.dtype)
    features = llava.vision(pixels, _attend_to_patches(implementation), unroll=unroll)
    before = len(prefix)
    first = jnp.broadcast_to(jnp.asarray(prefix, jnp.int32), (batch, before))
    text = llava.text.embed(jnp.concatenate([first, tokens], axis=1))
    visual = llava.projector(features)
    assert visual.shape[1] == IMAGE_TOKENS
    x = jnp.concatenate([text[:, :before], visual, text[:, before:]], axis=1)
    start = before + IMAGE_TOKENS
    seen = jnp.broadcast_to(jnp.arange(start, dtype=jnp.int32), (batch, start))
    positions = jnp.concatenate([seen, start + position], axis=1)
    mask, config = text_visibility(turn, start), llava.config.text
    if config.sliding_window is None and config.head_dim <= _FUSED_HEAD_DIM:
        attend = _attend_to_rows(mask, implementation)
    else:
        masks = _row_masks(config, mask, positions)
        attend = _attend_unfused(masks, config.logits_scale)
    x, _, _ = llava.text(x, positions, attend, unroll=unroll)
    return llava.text.logits(x[:, start:]), features


def _row_masks(
    config: TextConfig, text: Bool[Array, "B R S"], positions: Shaped[Array, "B S"]
) -> Callable[[Array], Bool[Array, "B S S"]]:
    """For a layer's number: the positions that each position of packed rows sees."""
    batch, length, total = text.shape
    image = jnp.tril(jnp.ones((total - length, total), bool))
    full = jnp.concatenate([jnp.broadcast_to(image, (batch, *image.shape)), text], axis=1)
    if config.sliding_window is None:
        return lambda layer: full
    near = positions[:, :, None] - positions[:, None, :] < config.sliding_window
    return lambda layer: by_kind(config.full_layers, layer, full & near, full)


def _attend_to_patches(implementation: Implementation) -> Attend:
    def attend(layer, query, key, value, carry):
        mixed = fused_attention(query, key, value, causal=False, implementation=implementation)
        return mixed, carry, None

    return attend


def _attend_to_rows(mask: Bool[Array, "B R S"], implementation: Implementation) -> Attend:
    """Packed rows: positions before the text are causal, text sees what `mask` shows."""

    def attend(layer, query, key, value, carry):
        return row_attention(query, key, value, mask, implementation=implementation), carry, None

    return attend


def _attend_unfused(
    mask_of: Callable[[Array], Bool[Array, "B S S"]], logits_scale: float
) -> Attend:
    """Attention with any mask and head width, whose gradient computes the scores again.

    Kept for every layer, the scores would take most of a step's memory.
    """
    attention = jax.checkpoint(partial(dense_attention, logits_scale=logits_scale))

    def attend(layer, query, key, value, carry):
        return attention(query, key, value, mask_of(layer)), carry, None

    return attend
