"""Which tables of a model the kernels that code dictionary codes take."""

import jax.numpy as jnp

from pallas_kernels.layout.tiled_dictionary import MOST_VIRTUAL
from pallas_kernels.quantize.nearest_kernel import TILE
from vkq_jax.codes.code_tables import ClassTables, CodeTables, SideTables
from vkq_jax.codes.dictionary_codes import DictionaryCodes

__all__ = ["learned_tables", "unfused_planes_reason", "unfused_tables_reason", "virtual_of"]

_MOST_PLANES = 4


def unfused_planes_reason(codes: DictionaryCodes) -> str | None:
    """Why the kernels do not code these Hadamard planes; None if they do."""
    planes = [c.planes for c in codes.classes]
    if any(p != int(p) for p in planes):
        return "a class of tokens with half a plane"
    if not 0 < max(planes) <= _MOST_PLANES:
        return f"{max(planes)} planes in a class, not 1 to {_MOST_PLANES}"
    return None


def unfused_tables_reason(
    codes: tuple[DictionaryCodes, DictionaryCodes],
    tables: CodeTables | None,
    kv_heads: int,
    head_dim: int,
) -> str | None:
    """Why the kernels do not code tokens of these heads with these tables; None if they do."""
    key, value = codes
    for name in ("codebook", "centres", "learned", "table_dtype"):
        if getattr(key, name) != getattr(value, name):
            return f"keys and values that differ in {name}"
    if [c.share for c in key.classes] != [c.share for c in value.classes]:
        return "keys and values in classes of other shares"
    if not key.codebook or key.codebook % TILE:
        return f"a codebook of {key.codebook} centroids, not a multiple of {TILE}"
    if tables is None:
        return "no tables of the model"
    for codes_of_side, side in zip(codes, (tables.key, tables.value), strict=True):
        if reason := _side_reason(
            codes_of_side, side, (kv_heads, codes_of_side.codebook, head_dim)
        ):
            return reason
    if not key.learned:
        if key != value:
            return "keys and values in Hadamard planes that differ"
        return unfused_planes_reason(key)
    virtual = [virtual_of(c, head_dim) for c in codes]
    if [n > 0 for n in virtual[0]] != [n > 0 for n in virtual[1]]:
        return "a class of tokens with bits for only one of keys and values"
    if not 0 < max(map(max, virtual)) <= MOST_VIRTUAL:
        return f"{max(map(max, virtual))} virtual channels in a class, not 1 to {MOST_VIRTUAL}"
    return None


def _side_reason(
    codes: DictionaryCodes, tables: SideTables, shape: tuple[int, int, int]
) -> str | None:
    """Why the kernels do not code keys, or values, with these tables and a codebook of `shape`."""
    book = tables.codebook
    if book is None or book.shape != shape:
        found = None if book is None else list(book.shape)
        return f"expected a codebook {list(shape)} in the tables, got {found}"
    if book.dtype != jnp.bfloat16:
        return f"a codebook in {book.dtype}, not bfloat16"
    if codes.metric and tables.metric is None:
        return "tables without a metric"
    if not codes.learned:
        return None
    if codes.metric and codes.scale is not None:
        return f'a metric beside scale="{codes.scale}"'
    for number, virtual in enumerate(virtual_of(codes, shape[-1])):
        learned = tables.of_class(number)
        if not virtual:
            continue
        if learned is None or learned.virtual != virtual:
            return f"tables without a dictionary of {virtual} columns"
        if learned.analysis.dtype != jnp.bfloat16:
            return f"a dictionary in {learned.analysis.dtype}, not bfloat16"
        if codes.scale in ("unbiased", "between") and learned.synthesis is not None:
            return f'a dictionary that is not orthonormal, with scale="{codes.scale}"'
    return None


def virtual_of(codes: DictionaryCodes, head_dim: int) -> tuple[int, ...]:
    """Bits of a token of each class."""
    return tuple(codes.virtual_channels(c, head_dim) for c in range(len(codes.classes)))


def learned_tables(
    tables: CodeTables, stored: tuple[int, ...]
) -> list[tuple[ClassTables, ClassTables] | None]:
    """Dictionaries of keys and values of each class; None: the class has no bits."""
    found: list[tuple[ClassTables, ClassTables] | None] = []
    for number, bits in enumerate(stored):
        key, value = tables.key.of_class(number), tables.value.of_class(number)
        if not bits:
            found.append(None)
            continue
        assert key is not None
        assert value is not None
        found.append((key, value))
    return found
