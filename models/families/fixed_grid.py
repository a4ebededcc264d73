"""Parts of families whose pictures are squares of one size for a vision transformer."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from models.families.base import ModelConfig, MultimodalModel, VisualInputs
from models.inputs.image_settings import check_image_settings, check_tile_counts
from models.inputs.pixels import check_image_tokens, check_pixels, pad_to_bucket
from models.inputs.processing import Processing
from models.layers.linear import Maker
from models.text.decoder import TextDecoder
from models.vision.vit import VisionTransformer, VitConfig
from vkq_jax.array_types import Array, Float

__all__ = [
    "FixedGridConfig",
    "FixedGridModel",
    "FixedGridProcessing",
    "TileProcessing",
    "bucketed_pixels",
    "read_pixels",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedGridConfig(ModelConfig):
    """Fields of `ModelConfig` and a vision tower."""

    vision: VitConfig

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one picture."""
        return self.vision.num_features


class FixedGridModel(MultimodalModel, abc.ABC):
    """Three parts: `vision`, `projector`, `text`."""

    def __init__(self, config: FixedGridConfig, make: Maker):
        """Random parameters."""
        self.config = config
        self.vision = VisionTransformer(config.vision, make)
        self.projector = self.make_projector(config, make)
        self.text = TextDecoder(config.text, make)

    @abc.abstractmethod
    def make_projector(self, config: Any, make: Maker) -> nnx.Module:
        """A module from features [images, features, width] to [images, tokens, hidden_size]."""

    def image_features(
        self, pixel_values: Float[Array, "images 3 size size"], layout: Any = None
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of the visual tokens of all images, one image after another."""
        features = self.projector(self.vision(pixel_values))
        return features.reshape(-1, features.shape[-1])


def read_pixels(
    config: FixedGridConfig, ids: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """`pixel_values` in float32, if there are any.

    Raises:
        ValueError: a wrong shape or dtype, values that are not finite, or another number of image
            tokens than the pictures need.
    """
    pixels, size = arrays.get("pixel_values"), config.vision.image_size
    if pixels is not None:
        pixels = check_pixels(pixels, (3, size, size), f"[images, 3, {size}, {size}]")
    images = 0 if pixels is None else len(pixels)
    tokens = int((ids == config.image_token_id).sum())
    check_image_tokens(config.image_token_id, tokens, images, images * config.image_tokens)
    return pixels


def bucketed_pixels(
    config: FixedGridConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """`Family.visual_inputs` of families whose pictures are cut into tiles of one size."""
    pixels = read_pixels(config, ids, arrays)
    return VisualInputs(None if pixels is None else pad_to_bucket(pixels))


class FixedGridProcessing(Processing):
    """Each picture resized to the tower's square; one run of image tokens a picture."""

    def check(self, config: FixedGridConfig, image_processor: Any) -> None:
        """See `Processing.check`: pictures have the tower's size."""
        check_image_settings(image_processor, config.vision.image_size)

    def preprocess(
        self,
        config: Any,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        pixels = self.run(image_processor, pictures)["pixel_values"]
        return {"pixel_values": pixels}, [placeholder * config.image_tokens] * len(pictures)


class TileProcessing(Processing, abc.ABC):
    """Each picture cut into tiles of the tower's size, and once more as a whole."""

    def check(self, config: FixedGridConfig, image_processor: Any) -> None:
        """See `Processing.check`: tiles have the tower's size."""
        check_image_settings(image_processor, config.vision.image_size)
        check_tile_counts(image_processor)

    @abc.abstractmethod
    def tiles_text(self, config: Any, tiles: int, placeholder: str, tokenizer: Any) -> str:
        """The text that the placeholder of a picture of so many tiles becomes."""

    def preprocess(
        self,
        config: Any,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        # transformers' processor cuts pictures even if the image processor's file says not to.
        output = self.run(image_processor, pictures, crop_to_patches=True)
        counts = output["num_patches"].tolist()
        texts = [self.tiles_text(config, tiles, placeholder, tokenizer) for tiles in counts]
        return {"pixel_values": output["pixel_values"]}, texts
