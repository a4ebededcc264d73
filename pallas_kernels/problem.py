"""What is fixed when a kernel is built: shapes, how keys and values are coded, how work is cut."""

import dataclasses
import math

from pallas_kernels import layouts

__all__ = ["Coding", "Problem", "Tiling"]


@dataclasses.dataclass(frozen=True)
class Coding:
    """How one side, keys or values, is coded.

    Attributes:
        scale_bits: of the scale per position of sign codes; 0: level codes, two levels per channel.
        groups: groups of positions, each with its own levels. group_blocks: blocks of a group.
        rotated: whether sign codes describe Hadamard-rotated channels.
        score_error_factor: see `vkq_jax.SignTensor` (keys only).
    """

    scale_bits: int = 0
    groups: int = 1
    group_blocks: int = 0
    rotated: bool = False
    score_error_factor: float = 0.0

    @property
    def signs(self) -> bool:
        """Sign codes with a scale per position."""
        return self.scale_bits > 0


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut.

    Attributes:
        warpgroups: groups of four warps in a thread block.
        warps_per_row: warps that share the positions of one row (a query of one KV head).
        splits: thread blocks, or parts of one, that share a row; merged by XLA afterwards.
        query_bytes: of the query in fixed point, 2 or 3.
    """

    warpgroups: int = 1
    warps_per_row: int = 4
    splits: int = 1
    query_bytes: int = 3


@dataclasses.dataclass(frozen=True)
class Problem:
    """One launch.

    Attributes:
        batch, kv_heads, blocks: of the bank. queries: queries that read each KV head.
        head_dim: H. key, value: how they are coded. tiling: how the work is cut.
    """

    batch: int
    kv_heads: int
    queries: int
    blocks: int
    head_dim: int
    key: Coding
    value: Coding
    tiling: Tiling

    @property
    def rows(self) -> int:
        """Queries of the whole launch."""
        return self.batch * self.kv_heads * self.queries

    @property
    def block_bytes(self) -> int:
        """Bytes of the words of one block of keys, or of values."""
        return layouts.BLOCK * self.head_dim // 8

    @property
    def warps(self) -> int:
        """Warps of a thread block."""
        return 4 * self.tiling.warpgroups

    @property
    def rows_per_block(self) -> int:
        """Parts of rows that a thread block works on."""
        return self.warps // self.tiling.warps_per_row

    @property
    def grid(self) -> int:
        """Thread blocks."""
        return self.rows * self.tiling.splits // self.rows_per_block

    @property
    def chunk_blocks(self) -> int:
        """Blocks in a row that share all tables."""
        sizes = [side.group_blocks for side in (self.key, self.value) if side.groups > 1]
        return math.gcd(*sizes) if sizes else self.blocks

    @property
    def merge_row(self) -> int:
        """Words of shared memory in which a warp leaves its result."""
        return self.head_dim + 32

    def __post_init__(self):
        """Checks that the tiling fits."""
        tiling = self.tiling
        if self.warps % tiling.warps_per_row or (self.rows * tiling.splits % self.rows_per_block):
            raise ValueError(f"{tiling} does not fit {self.rows} rows")
