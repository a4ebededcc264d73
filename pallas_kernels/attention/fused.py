"""Attention over one layer of its banks, by one launch: its operands, and what follows it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pallas_kernels.attention import outer_dictionary, outer_rotation
from pallas_kernels.attention.banks import Banks, packed_classes, packed_operands
from pallas_kernels.attention.kernel_spec import Task, TuningConfig
from pallas_kernels.attention.key_bias import BiasShare, bias_operands, entry_slots
from pallas_kernels.attention.launch import Launch, result_shapes
from pallas_kernels.attention.mapped_axes import fold_mapped_axes
from pallas_kernels.attention.plan import plan, planned_architecture
from pallas_kernels.attention.side_tables import launched_tables, rows_in_xla
from pallas_kernels.attention.table_launches import fold_queries, join_parts, part_groups
from pallas_kernels.attention.tuning_configs import keeping_tuning
from pallas_kernels.layout import layouts
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables, SideTables
from vkq_jax.pytree import take_layer
from vkq_jax.settings.config import ScoreCalibration
from vkq_jax.settings.score_maps import ScoreMap

__all__ = ["fused_attention", "keeps_scores", "packed_starts", "score_range"]


def fused_attention(
    query: Float[Array, "B K Q H"],
    visible: Mapping[str, Int32[Array, "B T"]],
    banks: Banks,
    layer: Int32[Array, ""],
    launch: Launch,
    tuning: TuningConfig | None = None,
    score_map: ScoreMap | None = None,
    logits_soft_cap: float | None = None,
    starts: Mapping[str, Int32[Array, "B ... T"]] | None = None,
    calibration: ScoreCalibration | None = None,
    tables: CodeTables | None = None,
    bias: BiasShare | None = None,
) -> tuple[Array, ...]:
    """One launch: attention of all queries of a KV head over one layer of its banks.

    Args:
        query: float32, already times `logits_scale`; Q = T * queries_per_kv_head, T in front.
        visible: for each dense bank, where what the queries of each query position see of it ends.
        banks: stacked over layers: the kernel finds its layer, nothing is sliced or copied.
        layer: which one.
        launch: runs the kernel.
        tuning: how the work is cut; None chooses by shape.
        score_map: [B, K, Q], of each query's scores over the packed bank.
        logits_soft_cap: of all scores, see `vkq_jax.attention.soft_cap`; not together with a score
            map, which would come first.
        starts: with a window, where what they see begins: of each dense bank, and of the packed one
            by the name of "packed", or [B, K, T] of each class of tokens see
            `packed_starts`.
        calibration: of the scores of the packed bank, in this launch; instead of a score map, see
            `keeps_scores`.
        tables: of all layers, that dictionary codes with a codebook were made with.
        bias: the share of a key bias in the scores of the packed bank; not together with a
            soft-cap.

    Returns:
        Output and natural log-sum-exp; -inf (and finite output) where nothing is visible. With a
        calibration also what `score_range` returns. Mapped axes become an axis around the layers
        or, where no bank is mapped, part of the queries: one launch, no copy.
    """
    packed = banks.packed
    if packed is not None and outer_rotation.rotates_outside(packed.key):
        query, lacking = outer_rotation.rotate_query(query, packed.key, layer)
        score_map = score_map or ScoreMap(jnp.ones_like(lacking), jnp.zeros_like(lacking))
        score_map = ScoreMap(score_map.slope, score_map.apply(lacking[..., None])[..., 0])
    rows = {"query": query}
    if bias is not None:
        rows["bias"] = bias.rows
    if score_map is not None:
        rows |= {"slope": score_map.slope, "shift": score_map.shift}
        if bias is not None:
            rows["bias"] = bias.rows * score_map.slope[..., None]
    launched = {
        "key": launched_tables("key", packed, tables),
        "value": launched_tables("value", packed, tables),
    }
    if launched["key"] is None:
        if packed is not None and outer_dictionary.folds_outside(packed.key):
            rows |= outer_dictionary.scores_of_centres(query, packed.key, layer)
        if (of_key := rows_in_xla("key", packed, tables, layer)) is not None:
            rows["products"] = of_key.scores(query)
    run = functools.partial(
        _launch,
        launch=launch,
        tuning=tuning,
        task="attention",
        logits_soft_cap=logits_soft_cap,
        calibration=calibration,
    )
    seen = {"visible": dict(visible), "start": dict(starts or {})}
    output, logsumexp, *found = _fold(run, rows, seen, banks, layer, bias, launched)
    if launched["value"] is not None:
        return output, logsumexp
    of_value = rows_in_xla("value", packed, tables, layer)
    if packed is not None and outer_dictionary.folds_outside(packed.value):
        assert of_value is not None
        results = output, logsumexp, *found
        return outer_dictionary.join_parts(
            results, packed.value, len(part_groups(packed)), of_value, layer
        )
    if of_value is not None:
        mass, *found = found
        output = output + of_value.weighted_sum(mass)
    if packed is not None and outer_rotation.rotates_outside(packed.value):
        output = outer_rotation.unrotate_output(output, logsumexp, packed.value, layer)
    return output, logsumexp, *reversed(found)


def packed_starts(
    bank: VisualBank, layer: Int32[Array, ""] | int, start: Int32[Array, "B T"]
) -> dict[str, Int32[Array, "B ... T"]]:
    """Starts of a launch over a packed bank of all layers, from those in its order of tokens.

    Of dictionary codes each class, of each head, has its own.
    """
    if bank.class_map is None:
        return {"packed": start}
    of_layer = dataclasses.replace(bank, class_map=take_layer(bank.class_map, layer))
    return {f"class{c}": count for c, count in enumerate(of_layer.counts_below(start))}


def keeps_scores(banks: Banks, query: tuple[int, ...], tuning: TuningConfig | None = None) -> bool:
    """Whether one launch calibrates its scores itself, for a query of shape [B, K, Q, H].

    It does so for one query a team (one for each KV head, or tables in groups), if a thread block
    can keep all scores of its packed bank.
    """
    packed = banks.packed
    if packed is None or outer_rotation.rotates_outside(packed.key):
        return False
    spec = plan(banks, (1, *query), 1, tuning)
    assert spec.packed is not None
    kept = keeping_tuning(spec.tuning, spec.packed, spec.head_dim, planned_architecture())
    return kept is not None


def score_range(
    query: Float[Array, "B K Q H"],
    packed: VisualBank,
    layer: Int32[Array, ""],
    launch: Launch,
    tuning: TuningConfig | None = None,
    start: Int32[Array, "B T"] | None = None,
    bias: BiasShare | None = None,
) -> tuple[Float[Array, "B K Q"], Float[Array, "B K Q"]]:
    """One launch: each query's lowest and highest score over one layer of a packed bank.

    Where nothing is visible, the lowest is above the highest. Arguments: see `fused_attention`.
    """
    lacking = 0.0
    if outer_rotation.rotates_outside(packed.key):
        query, lacking = outer_rotation.rotate_query(query, packed.key, layer)
    run = functools.partial(_launch, launch=launch, tuning=tuning, task="score range")
    seen = {"visible": {}, "start": {} if start is None else {"packed": start}}
    rows = {"query": query} | ({} if bias is None else {"bias": bias.rows})
    highest, lowest = _fold(run, rows, seen, Banks(packed, {}), layer, bias)
    return lowest + lacking, highest + lacking


def _fold(
    run, rows, seen, banks: Banks, layer, bias: BiasShare | None, tables=None
) -> tuple[Array, ...]:
    """`fold_mapped_axes` with what a key bias has beside its rows."""
    if bias is None:
        return fold_mapped_axes(run, rows, seen, banks, layer, tables=tables)
    banks = dataclasses.replace(banks, entries=bias.entries, class_words=bias.class_words)
    return fold_mapped_axes(run, rows, seen, banks, layer, bias.waves, tables)


# Compiled once for all layers of equal shapes, also where they are not in a loop.
@functools.partial(
    jax.jit, static_argnames=("launch", "tuning", "task", "logits_soft_cap", "calibration")
)
def _launch(
    rows,
    seen,
    banks: Banks,
    layer,
    waves,
    tables: Mapping[str, SideTables | None] | None,
    launch: Launch,
    tuning: TuningConfig | None,
    task: Task,
    logits_soft_cap: float | None = None,
    calibration: ScoreCalibration | None = None,
) -> tuple[Array, ...]:
    """With an axis Z in front of everything but the layer, the waves of a key bias and tables."""
    query, tables = rows["query"], tables or {}
    of_key, of_value = tables.get("key"), tables.get("value")
    positions = next((x.shape[-1] for x in jax.tree.leaves(seen)), 1)
    spec = plan(banks, query.shape, positions, tuning, calibration).with_options(
        windowed=bool(seen["start"]),
        task=task,
        maps_scores="slope" in rows,
        shifts_scores="shift" in rows,
        biased="bias" in rows,
        bias_axes=0 if waves is None else waves.shape[0],
        bias_positions=0 if waves is None else waves.shape[1],
        logits_soft_cap=logits_soft_cap,
    )
    if waves is not None and banks.packed is not None:
        spec = spec.with_options(entry_slots=entry_slots(packed_classes(banks.packed)))
    of_layer = {"layer": layer.reshape(1)} if spec.layers > 1 else {}
    if of_key is not None:
        rows = rows | fold_queries(spec, query, banks.packed, of_key, of_layer, launch)
        spec = spec.with_options(shifts_scores="shift" in rows)
    operands = {}
    if not spec.part:
        operands["query"] = layouts.pad_channels(query).reshape(-1, spec.head_dim)
    operands |= {name: rows[name].reshape(-1) for name in ("slope", "shift") if name in rows}
    if spec.products:
        operands["products"] = rows["products"].reshape(-1, spec.products)
    operands |= of_layer
    if banks.packed is not None:
        operands |= packed_operands(banks.packed)
        if spec.biased:
            operands |= bias_operands(spec, rows["bias"], waves, banks, of_layer, launch)
    for name, bank in banks.dense.items():
        operands |= bank.operands(name)
    for what, by_bank in seen.items():
        operands |= {f"{name}_{what}": x.reshape(-1, positions) for name, x in by_bank.items()}
    results = launch(spec, operands)
    splits = spec.tuning.splits
    if task == "score range":
        highest, lowest = (x.reshape(splits, *query.shape[:-1]) for x in results)
        return functools.reduce(jnp.maximum, highest), functools.reduce(jnp.minimum, lowest)
    if of_value is not None:
        head_dim = query.shape[-1]
        output, logsumexp = join_parts(
            spec, head_dim, results, banks.packed, of_value, of_layer, launch
        )
        return output.reshape(query.shape), logsumexp.reshape(query.shape[:-1])
    rest, joined = iter(results), []
    for part in spec.parts:
        own = [next(rest) for _ in result_shapes(part)]
        own = [x.reshape(splits, *query.shape[:-1], *x.shape[1:]) for x in own]
        output, logsumexp, *found = own
        if not part.part:
            output = output[..., : query.shape[-1]]
        if splits > 1:
            joined += _join(logsumexp, output, *found)
        else:
            joined += [x[0] for x in (output, logsumexp, *found)]
    return tuple(joined)


def _join(logsumexp: Float[Array, "P *rows"], *results: Float[Array, "P *rows _"]) -> tuple:
    """Joins results over parts of the positions; element by element, so that it is one kernel.

    Returns:
        The first result, the log-sum-exp of all parts, the other results.
    """
    highest = functools.reduce(jnp.maximum, logsumexp)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    weights = [jnp.exp(x - highest) for x in logsumexp]
    mass = functools.reduce(jnp.add, weights)
    share = 1.0 / jnp.where(mass > 0, mass, 1.0)
    shares = [(w * share)[..., None] for w in weights]
    first, *others = (
        functools.reduce(jnp.add, [w * x for w, x in zip(shares, parts, strict=True)])
        for parts in results
    )
    return first, highest + jnp.log(mass), *others
