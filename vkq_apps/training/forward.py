"""The forward pass of training: pictures and packed rows to scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.norms import activate
from models.layers.rope import rope
from models.vision.clip import ClipVisionTower
from vkq_apps.training.attention import Implementation, fused_attention, row_attention
from vkq_apps.training.model import TrainedModel
from vkq_apps.training.processor import PIXEL_MEAN, PIXEL_STD
from vkq_apps.training.rows import IMAGE_TOKENS, PREFIX, TEXT_START
from vkq_jax.array_types import Array, Bool, Float, Int32, Shaped

__all__ = ["forward", "normalize", "see", "text_visibility"]


def normalize(images: Shaped[Array, "B S S 3"], dtype: Any) -> Float[Array, "B 3 S S"]:
    """uint8 pictures as the image processor gives them."""
    mean, std = (255 * jnp.asarray(x, jnp.float32) for x in (PIXEL_MEAN, PIXEL_STD))
    pixels = (images.astype(jnp.float32) - mean) / std
    return pixels.transpose(0, 3, 1, 2).astype(dtype)


def text_visibility(turn: Shaped[Array, "B R"]) -> Bool[Array, "B R S"]:
    """What text tokens see: prefix and image, and their own turn up to themselves."""
    batch, length = turn.shape
    order = jnp.arange(length)
    own = (turn[:, :, None] == turn[:, None, :]) & (order[:, None] >= order[None, :])[None]
    return jnp.concatenate([jnp.ones((batch, length, TEXT_START), bool), own], axis=-1)


def see(
    tower: ClipVisionTower,
    pixels: Float[Array, "B 3 S S"],
    implementation: Implementation,
    *,
    unroll: bool,
) -> Float[Array, "B P width"]:
    """`tower(pixels)` with a choice of attention."""
    heads = tower.config.num_heads

    def step(block: Any, x: Array) -> Array:
        shape = (*x.shape[:2], heads, x.shape[-1] // heads)
        normed = block.attention_norm(x)
        mixed = fused_attention(
            *(project(normed).reshape(shape) for project in (block.query, block.key, block.value)),
            causal=False,
            implementation=implementation,
        )
        x = x + block.output(mixed.reshape(x.shape))
        hidden = activate(block.expand(block.mlp_norm(x)), tower.config.activation)
        return x + block.contract(hidden)

    x = tower.embedding_norm(tower._embed(pixels))
    return _run(tower.layers, step, x, tower.config.num_layers, unroll=unroll)[:, 1:]


def forward(
    model: TrainedModel,
    images: Shaped[Array, "B S S 3"],
    rows: Shaped[Array, "B 5 R"],
    implementation: Implementation,
    *,
    unroll: bool,
) -> tuple[Float[Array, "B R vocab"], Float[Array, "B P width"]]:
    """Scores of the next token at every text position, and the vision tower's features."""
    llava = model.llava
    tokens, turn, position = (rows[:, lane].astype(jnp.int32) for lane in range(3))
    batch = tokens.shape[0]
    features = see(llava.vision, normalize(images, llava.text.dtype), implementation, unroll=unroll)
    prefix = jnp.broadcast_to(jnp.asarray(PREFIX, jnp.int32), (batch, len(PREFIX)))
    text = llava.text.embed(jnp.concatenate([prefix, tokens], axis=1))
    visual = llava.projector(features)
    x = jnp.concatenate([text[:, : len(PREFIX)], visual, text[:, len(PREFIX) :]], axis=1)
    before = jnp.broadcast_to(jnp.arange(TEXT_START, dtype=jnp.int32), (batch, TEXT_START))
    positions = jnp.concatenate([before, TEXT_START + position], axis=1)
    x = _read(llava.text, x, positions, text_visibility(turn), implementation, unroll=unroll)
    assert visual.shape[1] == IMAGE_TOKENS
    return llava.text.logits(x), features


def _read(
    tower: Any,
    x: Float[Array, "B S width"],
    positions: Int32[Array, "B S"],
    mask: Bool[Array, "B R S"],
    implementation: Implementation,
    *,
    unroll: bool,
) -> Float[Array, "B R width"]:
    """`tower(x, positions, ...)` over packed rows; text positions only."""

    def attend(layer: Any, query: Array, key: Array, value: Array, carry: Any) -> Any:
        return row_attention(query, key, value, mask, implementation=implementation), carry, None

    cos, sin = rope(positions, tower.config.rope, x.dtype)

    def step(block: Any, x: Array) -> Array:
        return block(x, cos, sin, None, attend, None)[0]

    x = _run(tower.layers, step, x, tower.config.num_layers, unroll=unroll)
    return tower.norm(x[:, TEXT_START:])


def _run(layers: nnx.Module, step: Any, x: Array, num_layers: int, *, unroll: bool) -> Array:
    """Stacked blocks one after another, as a loop or unrolled.

    Unrolled, the backward pass need not stack the activations that it keeps: faster to run, slower
    to compile.
    """
    graphdef, params = nnx.split(layers)

    def body(x: Array, block: Any) -> tuple[Array, None]:
        return step(nnx.merge(graphdef, block), x), None

    if not unroll:
        return jax.lax.scan(body, x, params)[0]
    for layer in range(num_layers):
        x, _ = body(x, jax.tree.map(lambda p, layer=layer: p[layer], params))
    return x
