"""Vision towers over a grid of any size with 2-D RoPE: those of Qwen-VL and Pixtral."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from models.layers.attention import Attend, attend_with_mask
from models.layers.layer_kinds import by_kind
from models.layers.linear import Maker
from models.layers.rope import grid_rope
from models.vision.encoder import Encoder, EncoderConfig, encoder_norm
from models.vision.patch_grid import PatchGrids
from vkq_jax.array_types import Array, Bool, Float

__all__ = ["GridConfig", "GridTransformer"]


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """A vision transformer over pictures of any size.

    Attributes:
        encoder: its blocks.
        patch_size: pixels of a patch's side.
        temporal_patch_size: frames of a patch.
        merge: patches of the side of a block that becomes one visual token.
        patch_bias: bias of the patch embedding.
        pre_norm: a norm of embedded patches, before positions are added.
        post_norm: a norm after the last block.
        rope_theta: base of the wavelengths of 2-D RoPE.
        alternating_rope: see `models.layers.rope.grid_rope`.
        window: patches of a window's side; None: patches see their whole frame.
        full_layers: numbers of the layers without windows.
        table_side: side of the table of positions that is stretched over a picture; None without.
        table_edges, table_bicubic: see `PatchGrids.place`.
        axis_table: rows of each of two tables, by column and by row, whose sum is added to patches
            instead (Gemma 4); None without.
        deepstack_layers: layers whose outputs are features too.
        feature_layer: after how many blocks features are taken, others being neither held nor run;
            None: after the last.
    """

    encoder: EncoderConfig
    patch_size: int
    temporal_patch_size: int
    merge: int
    patch_bias: bool = False
    pre_norm: bool = False
    post_norm: bool = False
    rope_theta: float = 10000.0
    alternating_rope: bool = False
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    table_side: int | None = None
    table_edges: bool = False
    table_bicubic: bool = False
    axis_table: int | None = None
    deepstack_layers: tuple[int, ...] = ()
    feature_layer: int | None = None

    @property
    def num_layers(self) -> int:
        """Blocks that are held and run."""
        depth = self.encoder.num_hidden_layers
        return depth if self.feature_layer is None else self.feature_layer

    @property
    def patch_width(self) -> int:
        """Numbers of one patch: 3 colours, frames, rows, columns."""
        return 3 * self.temporal_patch_size * self.patch_size**2


class GridTransformer(nnx.Module):
    """Patches to features of patches."""

    def __init__(self, config: GridConfig, make: Maker):
        """Random parameters."""
        self.config, self.dtype = config, jnp.dtype(make.dtype)
        width = config.encoder.hidden_size
        self.patch_embedding = make.linear(config.patch_width, width, bias=config.patch_bias)
        if config.table_side is not None:
            self.position_embedding = make.embedding(config.table_side**2, width)
        if config.axis_table is not None:
            self.position_embedding_table = make.normal(2, config.axis_table, width)
        if config.pre_norm:
            self.pre_norm = encoder_norm(config.encoder, make)
        if config.post_norm:
            self.post_norm = encoder_norm(config.encoder, make)
        held = dataclasses.replace(config.encoder, num_hidden_layers=config.num_layers)
        self.encoder = Encoder(held, make)

    def __call__(
        self,
        pixel_values: Float[Array, "F P patch_width"],
        grids: PatchGrids,
        attend: Attend | None = None,
        *,
        unroll: bool = False,
    ) -> tuple[Float[Array, "F P hidden_size"], Float[Array, "A F P hidden_size"] | None]:
        """The last block's output, and those of `deepstack_layers` if there are any.

        `attend` is attention within a frame, and within its windows, by default.
        """
        config = self.config
        patches = pixel_values.shape[1]
        if attend is None:
            attend = attend_with_mask(
                self._mask_of(patches, grids), logits_scale=config.encoder.logits_scale
            )
        x = self.patch_embedding(pixel_values.astype(self.dtype))
        if config.pre_norm:
            x = self.pre_norm(x)
        if config.table_side is not None:
            table = self.position_embedding.weight[...].reshape(
                config.table_side, config.table_side, -1
            )
            placed = grids.place(
                table,
                patches,
                config.merge,
                edges=config.table_edges,
                bicubic=config.table_bicubic,
            )
            x = x + placed.astype(x.dtype)
        places = grids.rows_and_columns(patches, config.merge)
        if config.axis_table is not None:
            by_column, by_row = self.position_embedding_table[...].astype(x.dtype)
            row, column = jnp.moveaxis(places, -1, 0)
            x = x + by_column.at[column].get(mode="clip") + by_row.at[row].get(mode="clip")
        rope = grid_rope(
            places,
            config.encoder.head_width,
            config.rope_theta,
            x.dtype,
            alternating=config.alternating_rope,
        )
        x, _, kept = self.encoder(x, attend, rope=rope, keep=config.deepstack_layers, unroll=unroll)
        return self.post_norm(x) if config.post_norm else x, kept

    def _mask_of(self, patches: int, grids: PatchGrids):
        config = self.config
        full = _same(grids.segments(patches))
        if config.window is None:
            return lambda layer: full
        windows = _same(grids.windows(patches, config.merge, config.window))
        return lambda layer: by_kind(config.full_layers, layer, windows, full)


def _same(segments: Array) -> Bool[Array, "F P P"]:
    """Which patches share a segment. Padding sees padding: each row has something to see."""
    return segments[:, :, None] == segments[:, None]
