"""Pictures of any size as a batch of patch grids: what a vision tower knows of them.

A frame of a clip is a picture of its own here. Its patches lie in merge-block order: the patches of
a block of `merge` x `merge` neighbours, which become one visual token, side by side, row by row
within the block, the blocks row by row.

Compiled functions are kept per shape, so the number of frames, of patches of the largest frame and
of visual tokens are each rounded up to a `bucket`: whatever the sizes of pictures, there are four
shapes to each doubling.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from models.inputs.pixels import bucket, pad_to_bucket
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.pytree import frozen_pytree

__all__ = ["PatchGrids", "block_order", "cut_patches", "pack_frames"]


@frozen_pytree
class PatchGrids:
    """Sizes of the frames of a batch, and where each visual token's feature lies.

    Attributes:
        sizes: rows and columns of patches of each frame; (0, 0) is padding.
        feature_index: for each visual token of the batch its block among the blocks of all frames,
            counted with the padding of each frame; 0 after the last one.
    """

    sizes: Int32[Array, "F 2"]
    feature_index: Int32[Array, "features"]

    def in_order(self, blocks: Float[Array, "F blocks width"]) -> Float[Array, "features width"]:
        """Results for the blocks of all frames, in the order of their visual tokens."""
        return blocks.reshape(-1, blocks.shape[-1])[self.feature_index]

    def rows_and_columns(self, patches: int, merge: int) -> Int32[Array, "F P 2"]:
        """Row and column of each of `patches` patches of a frame, in merge-block order."""
        number = jnp.arange(patches, dtype=jnp.int32)
        block, inside = number // merge**2, number % merge**2
        blocks_wide = jnp.maximum(self.sizes[:, 1:] // merge, 1)
        rows = (block // blocks_wide) * merge + inside // merge
        columns = (block % blocks_wide) * merge + inside % merge
        return jnp.stack([rows, columns], axis=-1)

    def segments(self, patches: int) -> Int32[Array, "F P"]:
        """0 for the patches of a frame, -1 for padding."""
        count = self.sizes[:, :1] * self.sizes[:, 1:]
        return jnp.where(jnp.arange(patches, dtype=jnp.int32) < count, 0, -1)

    def windows(self, patches: int, merge: int, window: int) -> Int32[Array, "F P"]:
        """The number of each patch's window of `window` x `window` patches; -1 for padding."""
        rows, columns = jnp.moveaxis(self.rows_and_columns(patches, merge) // window, -1, 0)
        across = self.sizes[:, 1:] // window + 1
        return jnp.where(self.segments(patches) < 0, -1, rows * across + columns)

    def place(
        self,
        table: Float[Array, "n n width"],
        patches: int,
        merge: int,
        *,
        edges: bool = False,
        bicubic: bool = False,
    ) -> Float[Array, "F P width"]:
        """A table of positions stretched over each frame.

        Bilinear, corners on corners, or edges on edges; or bicubic (a = -0.75) and edges on edges,
        as GLM's.
        """
        side = table.shape[0]
        places = self.rows_and_columns(patches, merge).astype(jnp.float32)
        if edges or bicubic:
            places = (places + 0.5) / jnp.maximum(self.sizes, 1)[:, None] * side - 0.5
            if bicubic:
                return _bicubic(table, places)
            places = jnp.maximum(places, 0)
        else:
            steps = jnp.maximum(self.sizes - 1, 1)[:, None].astype(jnp.float32)
            places = places * (side - 1) / steps
        low = jnp.floor(places)
        above, (row, column) = places - low, jnp.moveaxis(low.astype(jnp.int32), -1, 0)
        total = jnp.zeros((), jnp.float32)
        for down in (0, 1):
            for right in (0, 1):
                near = jnp.stack([jnp.full_like(row, down), jnp.full_like(row, right)], -1)
                weight = jnp.where(near == 1, above, 1 - above).prod(-1, keepdims=True)
                taken = table.at[row + down, column + right].get(mode="clip")
                total = total + taken.astype(jnp.float32) * weight
        return total


def _bicubic(
    table: Float[Array, "n n width"], places: Float[Array, "F P 2"]
) -> Float[Array, "F P width"]:
    """A table between its entries, by cubic convolution; beyond its rim it goes on as there.

    Source: Keys, IEEE Trans. ASSP 29 (1981), 1153-1160, with a = -0.75.
    """
    a, low = -0.75, jnp.floor(places)
    above, (row, column) = places - low, jnp.moveaxis(low.astype(jnp.int32), -1, 0)

    def weight(tap: int) -> Array:
        x = jnp.abs(above - tap)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        return jnp.where(x <= 1, near, ((x - 5) * x + 8) * x * a - 4 * a)

    taps, top = range(-1, 3), table.shape[0] - 1
    weights = [weight(tap) for tap in taps]
    total = jnp.zeros((), jnp.float32)
    for down, rows in zip(taps, weights, strict=True):
        for right, columns in zip(taps, weights, strict=True):
            taken = table[jnp.clip(row + down, 0, top), jnp.clip(column + right, 0, top)]
            total = total + taken.astype(jnp.float32) * (rows[..., :1] * columns[..., 1:])
    return total


def cut_patches(
    pixels: Float[np.ndarray, "3 height width"], patch: int, merge: int
) -> Float[np.ndarray, "patches patch_width"]:
    """The patches of a picture in merge-block order, each as 3 colours, rows, columns.

    Sides are multiples of `patch * merge` pixels.
    """
    rows, columns = (side // (patch * merge) for side in pixels.shape[1:])
    cut = pixels.reshape(3, rows, merge, patch, columns, merge, patch)
    return cut.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3 * patch**2)


def block_order(rows: int, columns: int, merge: int) -> np.ndarray:
    """Numbers of a frame's patches, counted row by row, in merge-block order."""
    numbers = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    return numbers.transpose(0, 2, 1, 3).ravel()


def pack_frames(
    patches: Float[np.ndarray, "patches width"],
    sizes: Sequence[tuple[int, int]],
    feature_frames: Int32[np.ndarray, "features"],
    merge: int,
) -> tuple[Float[np.ndarray, "F P width"], PatchGrids]:
    """Frames one after another as a batch, on the host.

    Args:
        patches: of all frames.
        sizes: rows and columns of patches of each frame, multiples of `merge`; their products sum
            to the number of patches.
        feature_frames: for each visual token of the batch the number of the frame that it shows;
            the tokens of a frame are in the order of its blocks.
        merge: patches of a block's side.
    """
    counts = [rows * columns for rows, columns in sizes]
    area = merge**2
    longest = area * bucket(max(counts) // area)
    pixels = np.zeros((len(sizes), longest, patches.shape[1]), np.float32)
    for frame, part in zip(pixels, np.split(patches, np.cumsum(counts)[:-1]), strict=True):
        frame[: len(part)] = part
    # Frames may come in another order than their tokens: pictures first, then clips.
    within = np.concatenate([np.arange(count // area) for count in counts])
    index = np.empty(len(feature_frames), np.int32)
    order = np.argsort(feature_frames, kind="stable")
    index[order] = feature_frames[order] * (longest // area) + within
    layout = PatchGrids(
        jnp.asarray(pad_to_bucket(np.asarray(sizes, np.int32))),
        jnp.asarray(pad_to_bucket(index)),
    )
    return pad_to_bucket(pixels), layout
