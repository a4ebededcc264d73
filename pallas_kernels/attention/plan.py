"""The plan of one launch of the fused kernel, made from banks and the shape of a query."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax

from pallas_kernels.attention import outer_dictionary
from pallas_kernels.attention.banks import Banks, packed_classes
from pallas_kernels.attention.codings import Dense, Packed
from pallas_kernels.attention.kernel_spec import BOOK, KernelSpec, TuningConfig
from pallas_kernels.attention.tuning_configs import (
    choose_tuning,
    fits_at_once,
    keeping_tuning,
    tunings_at_once,
)
from pallas_kernels.isa.architectures import HOPPER, Architecture, architecture_here
from pallas_kernels.layout import layouts
from vkq_jax.settings.config import ScoreCalibration

__all__ = ["plan", "planned_architecture"]


def planned_architecture() -> Architecture:
    """The default device's; where it is unknown, Hopper's, for which `explain` plans."""
    return architecture_here() or HOPPER


def plan(
    banks: Banks,
    query: tuple[int, ...],
    positions: int,
    tuning: TuningConfig | None = None,
    calibration: ScoreCalibration | None = None,
) -> KernelSpec:
    """The launch over tiled banks [..., L, B, K, ...] for a query of shape [Z, B, K, Q, H].

    Args:
        banks: arrays, or their shapes.
        query: shape; Q = positions * queries_per_kv_head.
        positions: query positions.
        tuning: how the work is cut; None chooses by shape.
        calibration: see `fused.fused_attention`. Mapped axes may have added queries to the one for
            which `keeps_scores`: each has a team of its own.
    """
    outer, batch, kv_heads, queries, head_dim = query
    stored = layouts.stored_head_dim(head_dim)
    if banks.dense and head_dim not in layouts.HEAD_DIMS:
        raise ValueError(f"dense banks of head_dim {head_dim} in a launch")
    dense = tuple(
        Dense(name, bank.key.shape[-2], bank.key_scale is not None)
        for name, bank in banks.dense.items()
    )
    classes: tuple[Packed, ...] = ()
    layers = next((b.key.shape[-5] for b in banks.dense.values()), 1)
    groups: list[tuple[tuple[Packed, ...], int]] = []
    widest = stored
    if banks.packed is not None:
        classes = packed_classes(banks.packed)
        layers = jax.tree.leaves(banks.packed.key)[0].shape[-4]
        if outer_dictionary.folds_outside(key := banks.packed.key):
            of_parts = outer_dictionary.class_groups(classes)
            groups = [(x, outer_dictionary.part_dim(key, x)) for x in of_parts]
            widest = max(dim for _, dim in groups)
    of_book = bool(classes) and classes[0].key.codebook
    heads = outer * batch * kv_heads
    here = planned_architecture()
    at_once: Sequence[TuningConfig] = []  # of dictionaries in one loop
    if groups and calibration is None:
        at_once = [tuning] if tuning else tunings_at_once(heads, queries, classes)
    tuning = tuning or choose_tuning(heads, queries, widest, classes, dense, here)
    if calibration is not None:
        if tuning.queries > 1:
            tuning = choose_tuning(heads * queries, 1, stored, classes, dense, here)
        tuning = keeping_tuning(tuning, next(iter(classes)), stored, here)
        assert tuning is not None, "asked for without `keeps_scores`"
    spec = KernelSpec(
        outer=outer,
        layers=layers,
        batch=batch,
        kv_heads=kv_heads,
        queries=queries,
        positions=positions,
        head_dim=stored,
        classes=() if groups else classes,
        dense=dense,
        calibration=calibration,
        tuning=tuning,
        products=sum(dim for _, dim in groups) + (BOOK if of_book else 0),
    )
    in_one_loop = [
        one
        for one in (dataclasses.replace(spec, tuning=x) for x in at_once)
        if fits_at_once(_own_parts(one, groups), here)
    ]
    spec = next(iter(in_one_loop), spec)
    parts = _own_parts(spec, groups)
    parts = [spec, *parts] if dense or not parts else parts
    return dataclasses.replace(parts[0], others=tuple(parts[1:]), at_once=bool(in_one_loop))


def _own_parts(
    spec: KernelSpec, groups: Sequence[tuple[tuple[Packed, ...], int]]
) -> list[KernelSpec]:
    """The parts of a launch with a query of their own, from their classes and virtual channels."""
    starts = itertools.accumulate((dim for _, dim in groups), initial=0)
    return [
        dataclasses.replace(
            spec, head_dim=dim, classes=group, dense=(), part=group[0].name, first_product=start
        )
        for (group, dim), start in zip(groups, starts, strict=False)
    ]
