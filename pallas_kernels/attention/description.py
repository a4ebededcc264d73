"""The launches for a cache, in the words of `explain`."""

import jax

from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.attention.mosaic_gpu import calibrates_in_launch, launches_of
from pallas_kernels.attention.outer_rotation import rotates_outside
from pallas_kernels.attention.plan import plan
from pallas_kernels.attention.side_tables import Side, launched_tables, side_tables
from pallas_kernels.attention.support import uncovered_text
from pallas_kernels.layout import layouts
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables

__all__ = ["describe"]


def describe(cache: KVCache, query: jax.ShapeDtypeStruct) -> list[str]:
    """The launches of `attend_layer` for a query [B, T, N, H]; arrays may be abstract."""
    batch, positions, num_heads, head_dim = query.shape
    kv_heads = cache.text.key.shape[2]
    queries = positions * num_heads // kv_heads
    lines, launches = [], [banks for banks, _ in jax.eval_shape(launches_of, cache, 0)]
    calibration = cache.quant.calibration if cache.score_map is None else None
    shape = (batch, kv_heads, queries, head_dim)
    if calibration is not None and not calibrates_in_launch(launches, shape):
        calibration = None
    for banks in launches:
        shape = (1, batch, kv_heads, queries, head_dim)
        spec = plan(banks, shape, positions, calibration=calibration)
        parts = [
            f"{packed.num_positions} {_called(packed, part)}"
            for part in spec.parts
            for packed in part.classes
        ]
        parts += [
            f"{bank.capacity} {'in 8 bits' if bank.coded else 'dense'} ({bank.name})"
            for bank in spec.dense
        ]
        tuning = spec.tuning
        several = "query" if tuning.queries == 1 else "queries"
        lines.append(
            f"one launch over {', '.join(parts)}: {spec.grid} thread blocks of "
            f"{tuning.warps} warps, {tuning.team} x {tuning.splits} of them to a team of "
            f"{tuning.queries} {several} of a KV head"
        )
        if spec.packed is not None and cache.score_map is not None:
            lines.append("score calibration: static, in the query, no launch of its own")
        elif spec.packed is not None and cache.quant.calibration is not None:
            lines.append(
                "score calibration: in the launch, which keeps all scores"
                if calibration is not None
                else "score calibration: one more launch before, over the packed keys"
            )
        if banks.packed is not None:
            tensors = (("queries", banks.packed.key), ("results", banks.packed.value))
            rotated = [name for name, x in tensors if rotates_outside(x)]
            if rotated:
                lines.append(f"rotation of {' and '.join(rotated)}: by xla")
            lines += _table_lines(banks.packed, cache.tables)
            if cache.key_bias is not None:
                lines.append("share of the key bias in scores: by xla")
    stored = layouts.stored_head_dim(head_dim)
    if stored != head_dim:
        lines.append(f"head_dim {head_dim}: stored with zeros, as {stored}")
    reason = uncovered_text(cache.text)
    if reason and cache.text.cache_length:
        lines.append(f"text bank by xla, joined by its log-sum-exp: {reason}")
    return lines


def _table_lines(packed: VisualBank, tables: CodeTables | None) -> list[str]:
    """Lines that say whether launches or XLA multiply by the model's tables."""
    places: dict[str, list[str]] = {}
    sides: tuple[tuple[str, Side], ...] = (("queries", "key"), ("results", "value"))
    for name, side in sides:
        if tables is None or side_tables(side, packed, tables) is None:
            continue
        launched = launched_tables(side, packed, tables) is not None
        place = "one launch each, before and behind" if launched else "by xla"
        places.setdefault(place, []).append(f"of {name}")
    return [
        f"products {' and '.join(names)} with the model's tables: {place}"
        for place, names in places.items()
    ]


def _called(packed: Packed, part: KernelSpec) -> str:
    """The name of a bank, or a class of tokens, in `describe`."""
    if not packed.of_classes:
        return "packed"
    bits = packed.key.bits
    if bits and part.part:
        return f"packed in {part.head_dim} virtual channels"
    if bits:
        return f"packed in {bits} plane{'s' if bits > 1 else ''}"
    codebook = packed.key.codebook or packed.value.codebook
    return "as centroids of the codebook" if codebook else "counted by centroid"
