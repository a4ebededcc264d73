"""Products with the model's tables in launches of their own, before and behind that of attention.

Each is one kernel that reads the tables of its layer in place: in XLA they are some ten, which
gather rows of the tables into one matrix first (`table_rows`), and a decode step waits for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from pallas_kernels.attention import outer_dictionary
from pallas_kernels.attention.banks import packed_classes
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.attention.launch import Launch, result_shapes
from pallas_kernels.attention.table_specs import Dictionary, FoldSpec, JoinSpec
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from vkq_jax.array_types import Array, Float
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import ClassTables, SideTables

__all__ = ["fold_queries", "join_parts", "launches_tables", "part_groups"]

_CHUNK = 32  # channels of a product
_GROUP = 8  # virtual channels of a lane


def part_groups(packed: VisualBank | None) -> list[tuple[Packed, ...]]:
    """The classes of each part of codes with learned dictionaries; none of others."""
    if packed is None or not outer_dictionary.folds_outside(packed.key):
        return []
    return outer_dictionary.class_groups(packed_classes(packed))


def launches_tables(
    x: TiledDictionary, groups: Sequence[Sequence[Packed]], tables: SideTables
) -> bool:
    """Whether a side's products with its tables are launches; else they are XLA's.

    Tables are to be in bfloat16, with channels in rows (of keys in columns, too), and sizes
    multiples of what a lane or a warp takes.

    Args:
        x: the side. groups: the classes of each part, see `part_groups`. tables: of the side.
    """
    learned = [tables.of_class(group[0].number) for group in groups]
    matrices = [] if tables.codebook is None else [tables.codebook]
    for of_class in learned:
        if of_class is None or not of_class.virtual or of_class.virtual % _GROUP:
            return False
        if of_class.synthesis is not None and x.side == "value":
            return False
        if of_class.channel.dtype != jnp.int32 or of_class.weight.dtype != jnp.float32:
            return False
        matrices.append(_matrix(of_class))
    if groups and x.centre.shape[-2]:
        matrices.append(x.centre)
    return x.head_dim % _CHUNK == 0 and all(m.dtype == jnp.bfloat16 for m in matrices)


def fold_queries(
    spec: KernelSpec,
    query: Float[Array, "Z B K Q H"],
    packed: VisualBank | None,
    tables: SideTables,
    of_layer: Mapping[str, Array],
    launch: Launch,
) -> dict[str, Float[Array, "rows ..."]]:
    """Products of the queries of a launch with the tables of keys, by operand name.

    Args:
        spec: of the launch. query: its queries. packed: its packed bank.
        tables: of keys, of all layers. of_layer: the operand with the layer's number, if any.
        launch: runs the kernel.
    """
    assert packed is not None
    assert isinstance(packed.key, TiledDictionary)
    groups = part_groups(packed)
    own = FoldSpec(**_shape(spec, query.shape[-1], packed.key, groups, tables))
    operands = {"query": query.reshape(-1, query.shape[-1]), **of_layer}
    results = launch(own, operands | _table_operands(own, packed.key, groups, tables))
    return dict(zip(("products", "shift"), results, strict=False))


def join_parts(
    spec: KernelSpec,
    head_dim: int,
    results: Sequence[Array],
    packed: VisualBank | None,
    tables: SideTables,
    of_layer: Mapping[str, Array],
    launch: Launch,
) -> tuple[Float[Array, "rows H"], Float[Array, "rows"]]:
    """Output and natural log-sum-exp from the results of all parts and splits of a launch.

    Args:
        spec: of the launch. head_dim: H. results: in their order. packed: its packed bank.
        tables: of values, of all layers. of_layer, launch: see `fold_queries`.
    """
    assert packed is not None
    assert isinstance(packed.value, TiledDictionary)
    groups = part_groups(packed)
    own = JoinSpec(
        **_shape(spec, head_dim, packed.value, groups, tables),
        splits=spec.tuning.splits,
        direct=not spec.part,
        packed=not groups,
        alike=spec.at_once,
    )
    names = [f"{part.part}{name}" for part in spec.parts for name in result_shapes(part)]
    operands = {**dict(zip(names, results, strict=True)), **of_layer}
    operands |= _table_operands(own, packed.value, groups, tables)
    output, logsumexp = launch(own, operands)
    return output, logsumexp


def _matrix(learned: ClassTables) -> Array:
    """The channels of a dictionary as its tables hold them: a synthesis has them in columns."""
    return learned.analysis if learned.synthesis is None else learned.synthesis


def _shape(
    spec: KernelSpec,
    head_dim: int,
    x: TiledDictionary,
    groups: Sequence[Sequence[Packed]],
    tables: SideTables,
) -> dict:
    """The fields of `TableSpec`, which `FoldSpec` and `JoinSpec` share."""
    dictionaries = []
    for group, (number, size) in zip(groups, outer_dictionary.table_parts(x, groups), strict=True):
        learned = tables.of_class(number)
        assert learned is not None
        by_columns = learned.synthesis is not None
        dictionaries.append(Dictionary(group[0].name, learned.virtual, size, by_columns))
    return {
        "outer": spec.outer,
        "layers": spec.layers,
        "batch": spec.batch,
        "kv_heads": spec.kv_heads,
        "queries": spec.queries,
        "head_dim": head_dim,
        "dictionaries": tuple(dictionaries),
        "centroids": tables.codebook.shape[-2] if x.codebook and tables.codebook is not None else 0,
        "centred": bool(groups) and x.centre.shape[-2] > 0,
    }


def _table_operands(
    spec: FoldSpec | JoinSpec,
    x: TiledDictionary,
    groups: Sequence[Sequence[Packed]],
    tables: SideTables,
) -> dict[str, Array]:
    """The tables' arrays by operand name, layers and heads joined."""
    found = {}
    for group, dictionary in zip(groups, spec.dictionaries, strict=True):
        learned = tables.of_class(group[0].number)
        assert learned is not None
        matrix = _matrix(learned)
        found |= {
            f"{dictionary.part}matrix": matrix.reshape(-1, *matrix.shape[-2:]),
            f"{dictionary.part}channel": learned.channel.reshape(-1, dictionary.virtual),
            f"{dictionary.part}weight": learned.weight.reshape(-1, dictionary.virtual),
        }
    if spec.centroids:
        assert tables.codebook is not None
        found["book"] = tables.codebook.reshape(-1, *tables.codebook.shape[-2:])
    if spec.centred:
        found["centre"] = x.centre.reshape(-1, x.head_dim)
    return found
