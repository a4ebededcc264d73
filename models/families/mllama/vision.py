"""The vision tower of Mllama: tiles of a picture look at each other in two encoders."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from models.layers.attention import attend_with_mask
from models.layers.linear import Maker
from models.layers.norms import LayerNorm
from models.vision.encoder import Encoder, EncoderConfig
from vkq_jax.array_types import Array, Bool, Float, Int32

__all__ = ["MllamaVision", "MllamaVisionConfig"]

_MULTIPLE = 8
"""Tiles are padded to a multiple of this many positions: patches attend to that padding."""


@dataclasses.dataclass(frozen=True)
class MllamaVisionConfig:
    """A tower over pictures of several tiles.

    Attributes:
        encoder: blocks of the first encoder. num_global_layers: blocks of the second, with gates.
        image_size, patch_size: pixels of a side of a tile and of a patch.
        max_num_tiles: tiles of a picture, those that are padding included.
        num_aspect_ratios: shapes that a picture of tiles may have.
        kept_layers: blocks of the first encoder whose outputs are features, too.
    """

    encoder: EncoderConfig
    num_global_layers: int
    image_size: int
    patch_size: int
    max_num_tiles: int
    num_aspect_ratios: int
    kept_layers: tuple[int, ...]

    @property
    def side(self) -> int:
        """Patches of a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def tile_features(self) -> int:
        """Features of a tile: one for each patch and one for the class token."""
        return self.side**2 + 1

    @property
    def feature_width(self) -> int:
        """Channels of one feature."""
        return self.encoder.hidden_size * (1 + len(self.kept_layers))


class MllamaVision(nnx.Module):
    """Tiles to features; parts have the names of the files."""

    def __init__(self, config: MllamaVisionConfig, make: Maker):
        """Random parameters; gates are 0."""
        self.config, self.dtype = config, jnp.dtype(make.dtype)
        width = config.encoder.hidden_size
        self.patch_embedding = make.linear(3 * config.patch_size**2, width, bias=False)
        self.class_embedding = make.normal(width)
        self.gated_positional_embedding = _Positions(config, make)
        self.pre_tile_positional_embedding = _TileEmbedding(config, make)
        self.post_tile_positional_embedding = _TileEmbedding(config, make)
        self.layernorm_pre, self.layernorm_post = (
            LayerNorm(width, epsilon=1e-5, param_dtype=make.param_dtype) for _ in range(2)
        )
        self.transformer = Encoder(config.encoder, make)
        self.global_transformer = Encoder(
            dataclasses.replace(
                config.encoder, num_hidden_layers=config.num_global_layers, tanh_gates=True
            ),
            make,
        )

    def __call__(
        self,
        pixel_values: Float[Array, "images tiles 3 size size"],
        aspect_ratio: Int32[Array, "images"],
        is_tile: Bool[Array, "images tiles"],
    ) -> Float[Array, "images tiles features feature_width"]:
        """Features of each tile, class token first; those of padding tiles as well.

        Args:
            pixel_values: tiles of each picture, padding behind them.
            aspect_ratio: number of its shape, from 1.
            is_tile: False for padding.
        """
        config = self.config
        x = self._patches(pixel_values.astype(self.dtype))
        x = self.pre_tile_positional_embedding(x, aspect_ratio)
        first = self.class_embedding[...].astype(x.dtype).reshape(1, 1, 1, -1)
        first = jnp.broadcast_to(first, (*x.shape[:2], 1, x.shape[-1]))
        x = self.gated_positional_embedding(jnp.concatenate([first, x], axis=2), aspect_ratio)
        x = self.layernorm_pre(x)
        features = config.tile_features
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -features % _MULTIPLE), (0, 0)))
        images, tiles, positions, width = x.shape
        real = is_tile[:, :, None] & (jnp.arange(positions) < features)
        real = real.reshape(images, tiles * positions)
        # As in transformers, only padding does not see padding.
        attend = attend_with_mask(
            lambda layer: real[:, :, None] | real[:, None],
            logits_scale=config.encoder.logits_scale,
        )
        keep = tuple(sorted(set(config.kept_layers)))
        x, _, kept = self.transformer(x.reshape(images, -1, width), attend, keep=keep)
        assert kept is not None
        x = self.layernorm_post(x).reshape(images, tiles, positions, width)
        x = self.post_tile_positional_embedding(x, aspect_ratio)
        x, _, _ = self.global_transformer(x.reshape(images, -1, width), attend)
        # Channel by channel, each with its value in all kept layers.
        kept = jnp.stack([kept[keep.index(layer)] for layer in config.kept_layers], axis=-1)
        x = jnp.concatenate([x, kept.reshape(*x.shape[:2], -1)], axis=-1)
        return x.reshape(images, tiles, positions, -1)[:, :, :features]

    def _patches(
        self, pixels: Float[Array, "images tiles 3 size size"]
    ) -> Float[Array, "images tiles patches hidden_size"]:
        side, patch = self.config.side, self.config.patch_size
        lead = pixels.shape[:2]
        x = pixels[..., : side * patch, : side * patch]
        x = x.reshape(*lead, 3, side, patch, side, patch).transpose(0, 1, 3, 5, 2, 4, 6)
        return self.patch_embedding(x.reshape(*lead, side * side, 3 * patch * patch))


class _TileEmbedding(nnx.Module):
    """A vector for each tile of each shape of pictures, times the tanh of a gate."""

    def __init__(self, config: MllamaVisionConfig, make: Maker):
        self.tiles = config.max_num_tiles
        width = self.tiles * config.encoder.hidden_size
        self.embedding = make.embedding(config.num_aspect_ratios + 1, width)
        self.gate = nnx.Param(jnp.zeros(1, make.param_dtype))

    def __call__(self, x: Array, aspect_ratio: Array) -> Array:
        own = self.embedding(aspect_ratio).reshape(len(x), self.tiles, 1, -1)
        return x + own * jnp.tanh(self.gate[...].astype(x.dtype))


class _Positions(nnx.Module):
    """Vectors of the positions of a tile, and of those of each tile of each shape of pictures."""

    def __init__(self, config: MllamaVisionConfig, make: Maker):
        width, positions = config.encoder.hidden_size, config.tile_features
        self.embedding = make.normal(positions, width)
        self.tile_embedding = make.embedding(
            config.num_aspect_ratios + 1, config.max_num_tiles * positions * width
        )
        self.gate = nnx.Param(jnp.zeros(1, make.param_dtype))

    def __call__(self, x: Array, aspect_ratio: Array) -> Array:
        gate = jnp.tanh(self.gate[...].astype(x.dtype))
        x = x + (1 - gate) * self.embedding[...].astype(x.dtype)[None, None]
        return x + gate * self.tile_embedding(aspect_ratio).reshape(x.shape)
