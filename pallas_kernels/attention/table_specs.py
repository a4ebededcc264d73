"""The fixed settings of both launches of `table_launches`: shapes, tables."""

import dataclasses

from pallas_kernels.attention.kernel_spec import BOOK

__all__ = ["ROWS", "Dictionary", "FoldSpec", "JoinSpec", "TableSpec"]

ROWS = 16  # queries of a tile
_MOST_TILES = 4  # of a thread block, whose shared memory has room for their sums
_THREAD_BLOCKS = 120


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """The dictionary of a class of tokens, of one side.

    Attributes:
        part: the start of the names of its operands, and of the results of its part of the launch.
        virtual: n. size: n and the virtual channels of zeros behind them.
        by_columns: whether its channels are the columns of its matrix, not the rows.
    """

    part: str
    virtual: int
    size: int
    by_columns: bool = False


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """The shapes and tables of either launch.

    Attributes:
        outer, layers, batch, kv_heads, queries: as in `KernelSpec`. head_dim: H.
        dictionaries: of the parts of the launch between them, in their order.
        centroids: M, of the codebook; 0: there is none.
        centred: whether tokens of a head have a centre beside.
    """

    outer: int
    layers: int
    batch: int
    kv_heads: int
    queries: int
    head_dim: int
    dictionaries: tuple[Dictionary, ...] = ()
    centroids: int = 0
    centred: bool = False

    @property
    def rows(self) -> int:
        """Queries of the whole launch."""
        return self.kv_heads * self.head_rows

    @property
    def head_rows(self) -> int:
        """Queries of all sequences that share a head's tables."""
        return self.outer * self.batch * self.queries

    @property
    def units(self) -> int:
        """Thread blocks that share a tile."""
        raise NotImplementedError

    @property
    def block_tiles(self) -> int:
        """Tiles of a thread block."""
        return 1

    @property
    def head_blocks(self) -> int:
        """Runs of `block_tiles` tiles of a head's queries."""
        return -(-self.head_rows // (ROWS * self.block_tiles))

    @property
    def grid(self) -> int:
        """Thread blocks."""
        return self.kv_heads * self.head_blocks * self.units

    @property
    def products(self) -> int:
        """Numbers of a query's products, see `KernelSpec.products`."""
        return sum(x.size for x in self.dictionaries) + (BOOK if self.centroids else 0)


@dataclasses.dataclass(frozen=True)
class FoldSpec(TableSpec):
    """Products of queries, before the launch."""

    columns = 128  # centroids of a thread block
    warps = 4

    @property
    def units(self) -> int:
        """One for each dictionary and for each part of the codebook."""
        return len(self.dictionaries) + (BOOK // self.columns if self.centroids else 0)

    @property
    def stride(self) -> int:
        """Words from a query's sums in shared memory to the next one's."""
        return max(self.head_dim if self.dictionaries else 0, self.columns) + 8

    @property
    def shared_words(self) -> int:
        """Words of shared memory of a thread block."""
        return ROWS * self.stride


@dataclasses.dataclass(frozen=True)
class JoinSpec(TableSpec):
    """Results of the launch's parts, and of thread blocks that share a team's positions, as one.

    Attributes:
        splits: as in `TuningConfig`.
        direct: whether a part has output in the channels themselves.
        packed: whether that part is of the packed bank and has weights by centroid.
        alike: whether weights by centroid are the same in all parts that have them.
    """

    splits: int = 1
    direct: bool = False
    packed: bool = False
    alike: bool = False

    warps = 16

    @property
    def block_tiles(self) -> int:
        """As many as leave a thread block for nearly each multiprocessor.

        Each loads its part of the tables once for all of them.
        """
        of_one, count = self.kv_heads * -(-self.head_rows // ROWS) * self.units, _MOST_TILES
        while count > 1 and of_one < _THREAD_BLOCKS * count:
            count //= 2
        return count

    @property
    def columns(self) -> int:
        """Channels of a thread block's results."""
        return 64 if self.head_dim % 64 == 0 else 32

    @property
    def shares(self) -> int:
        """Warps that share the sums of 32 channels of results."""
        return self.warps // (self.columns // 32)

    @property
    def units(self) -> int:
        """One for each run of columns."""
        return self.head_dim // self.columns

    @property
    def shared_words(self) -> int:
        """Words of shared memory of a thread block: sums of each warp, for each tile."""
        return self.block_tiles * self.warps * ROWS * 32
