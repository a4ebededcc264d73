"""The model's tables that a packed bank is multiplied by: in launches of their own, or in XLA."""

from __future__ import annotations

from typing import Literal

from pallas_kernels.attention import outer_dictionary
from pallas_kernels.attention.table_launches import launches_tables, part_groups
from pallas_kernels.attention.table_rows import TableRows, table_rows
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from vkq_jax.array_types import Array, Int32
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables, SideTables
from vkq_jax.pytree import take_layer

__all__ = ["Side", "launched_tables", "rows_in_xla", "side_tables"]

Side = Literal["key", "value"]


def side_tables(
    side: Side, packed: VisualBank | None, tables: CodeTables | None
) -> tuple[TiledDictionary, SideTables] | None:
    """A side's codes and the tables that it is multiplied by, if any.

    Raises:
        ValueError: there should be some.
    """
    x = None if packed is None else getattr(packed, side)
    if not isinstance(x, TiledDictionary) or not (x.codebook or x.learned):
        return None
    if tables is None:
        raise ValueError(
            "these codes were made with the model's tables and cannot be read without "
            "them: pass the same `tables`"
        )
    return x, getattr(tables, side)


def launched_tables(
    side: Side, packed: VisualBank | None, tables: CodeTables | None
) -> SideTables | None:
    """The tables of all layers that a side is multiplied by in a launch, if any."""
    found = side_tables(side, packed, tables)
    if found is None:
        return None
    x, of_side = found
    return of_side if launches_tables(x, part_groups(packed), of_side) else None


def rows_in_xla(
    side: Side, packed: VisualBank | None, tables: CodeTables | None, layer: Int32[Array, ""]
) -> TableRows | None:
    """The rows of a layer's tables that a side is multiplied by in XLA, if any."""
    found = side_tables(side, packed, tables)
    if found is None:
        return None
    x, of_side = found
    parts = outer_dictionary.table_parts(x, part_groups(packed))
    return table_rows(x, parts, take_layer(of_side, layer))
