"""Gemma 4 12B as a family: squares of pixels become visual tokens without a vision tower."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from models.checkpoints.naming import WeightNames
from models.checkpoints.sources import Size
from models.families.base import Family
from models.families.gemma4.clips import Gemma4ClipProcessing
from models.families.gemma4.config import Gemma4Config
from models.families.gemma4.family import ARRAYS, UNUSED_ARRAYS, Gemma4Processing, visual_inputs
from models.families.gemma4.model import Gemma4Model
from models.families.gemma4.naming import MODEL, names_with_text
from models.families.gemma4.unified_config import Gemma4UnifiedConfig, PixelSquares
from models.inputs.clips import ReadClip
from models.inputs.from_transformers import from_transformers
from models.layers.linear import Maker
from models.layers.norms import LayerNorm, rms_norm
from models.vision.patch_grid import PatchGrids
from vkq_jax.array_types import Array, Float

__all__ = ["FAMILY", "merged"]


class _Embedder(nnx.Module):
    """Squares to vectors: a matrix between two norms, positions, a third norm."""

    def __init__(self, squares: PixelSquares, make: Maker):
        self.dtype = jnp.dtype(make.dtype)
        norm = {"epsilon": 1e-5, "param_dtype": make.param_dtype}
        self.patch_ln1 = LayerNorm(squares.patch_width, **norm)
        self.patch_dense = make.linear(squares.patch_width, squares.width)
        self.patch_ln2 = LayerNorm(squares.width, **norm)
        self.pos_embedding = make.normal(squares.axis_table, 2, squares.width)
        self.pos_norm = LayerNorm(squares.width, **norm)

    def __call__(
        self, pixels: Float[Array, "F P patch_width"], grids: PatchGrids
    ) -> Float[Array, "F P width"]:
        x = self.patch_ln1(pixels.astype(self.dtype))
        x = self.patch_ln2(self.patch_dense(x))
        row, column = jnp.moveaxis(grids.rows_and_columns(x.shape[1], 1), -1, 0)
        by_column, by_row = jnp.moveaxis(self.pos_embedding[...].astype(x.dtype), 1, 0)
        places = by_column.at[column].get(mode="clip") + by_row.at[row].get(mode="clip")
        return self.pos_norm(x + places)


class _Projector(nnx.Module):
    """A norm, one matrix."""

    def __init__(self, config: Gemma4UnifiedConfig, make: Maker):
        self.epsilon, width = config.vision.rms_norm_eps, config.vision.width
        self.embedding_projection = make.linear(width, config.text.hidden_size, bias=False)

    def __call__(self, x: Float[Array, "F P width"]) -> Float[Array, "F P hidden_size"]:
        return self.embedding_projection(rms_norm(x, self.epsilon).astype(x.dtype))


class _Model(Gemma4Model):
    """Three parts: `vision`, which is no tower, `projector`, `text`."""

    def make_tower(self, config: Gemma4UnifiedConfig, make: Maker) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.vision = _Embedder(config.vision, make)
        self.projector = _Projector(config, make)

    def image_features(
        self, pixel_values: Float[Array, "F P patch_width"], layout: PatchGrids
    ) -> Float[Array, "features hidden_size"]:
        return layout.in_order(self.projector(self.vision(pixel_values, layout)))


def _weights(config: Gemma4UnifiedConfig) -> WeightNames:
    # Files of the Hub have the embedder beside the projector, transformers' modules around it.
    rules = (
        (MODEL + r"(?:vision_embedder|embed_vision)\.(patch_|pos_)", r"vision.\1"),
        (MODEL + r"embed_vision\.(?:multimodal_embedder\.)?", "projector."),
    )
    published = ((r"vision\.", "model.vision_embedder."), (r"projector\.", "model.embed_vision."))
    table = "vision.pos_embedding"
    sizes = (
        Size("vision_config.mm_posemb_size", config.vision.axis_table, table, 0),
        Size("vision_config.mm_embed_dim", config.vision.width, table, 2),
    )
    return names_with_text(config.text, rules, published, sizes)


def merged(
    patches: Float[np.ndarray, "F P width"], places: np.ndarray, side: int
) -> tuple[Float[np.ndarray, "F blocks block_width"], np.ndarray]:
    """Patches, and column and row of each, as squares of `side` x `side` of them.

    Both are row by row, each patch and each square as rows, columns and 3 colours, with zeros and
    -1 behind the last one.
    """
    patch, most = math.isqrt(patches.shape[2] // 3), patches.shape[1] // side**2
    blocks = np.zeros((len(patches), most, patches.shape[2] * side**2), patches.dtype)
    found = np.full((len(patches), most, 2), -1)
    for block, place, own, grid in zip(blocks, found, patches, places, strict=True):
        columns, rows = ((grid.max(0) + 1) // side).tolist()
        cut = own[: rows * columns * side**2].reshape(rows, side, columns, side, patch, patch, 3)
        block[: rows * columns] = cut.transpose(0, 2, 1, 4, 3, 5, 6).reshape(rows * columns, -1)
        place[: rows * columns] = np.indices((rows, columns))[::-1].reshape(2, -1).T
    return blocks, found


def _with_squares(
    arrays: dict[str, np.ndarray], pixels: str, places: str, side: int
) -> dict[str, np.ndarray]:
    squares = merged(arrays[pixels], arrays[places], side)
    return arrays | dict(zip((pixels, places), squares, strict=True))


class _ClipProcessing(Gemma4ClipProcessing):
    """Gemma 4's frames, in squares."""

    def preprocess(
        self,
        config: Gemma4Config,
        settings: Any,
        clips: Sequence[ReadClip],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `ClipProcessing.preprocess`."""
        arrays, texts = super().preprocess(config, settings, clips, placeholder, tokenizer)
        names = ("pixel_values_videos", "video_position_ids")
        return _with_squares(arrays, *names, config.pooling), texts


class _Processing(Gemma4Processing):
    """Gemma 4's pictures, in squares."""

    def clips(self, config: Gemma4Config) -> Gemma4ClipProcessing | None:
        """See `Processing.clips`."""
        return None if config.video_token_id is None else _ClipProcessing()

    def load_image_processor(self, folder: Path, config: Any) -> Any:
        """See `Processing.load_image_processor`; transformers' own needs torchvision."""
        module = "transformers.models.gemma4.image_processing_pil_gemma4"
        kind = from_transformers("Gemma4ImageProcessorPil", module)
        found, _ = kind.get_image_processor_dict(folder, local_files_only=True)
        return kind.from_dict(found)

    def preprocess(
        self,
        config: Gemma4Config,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        arrays, texts = super().preprocess(
            config, image_processor, pictures, placeholder, tokenizer
        )
        names = ("pixel_values", "image_position_ids")
        return _with_squares(arrays, *names, config.pooling), texts


FAMILY = Family(
    read_config=Gemma4UnifiedConfig.from_hf,
    build=_Model,
    weights=_weights,
    array_names=ARRAYS,
    unused_names=UNUSED_ARRAYS,
    visual_inputs=visual_inputs,
    processing=_Processing,
)
