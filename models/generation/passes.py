"""A pass over a cache, each device on its own sequences and heads."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from models.sharding.axes import KV_HEADS, MODEL
from models.sharding.placing import cache_axes, data_axis, place, place_sequences
from models.sharding.shards import on_shards
from models.sharding.split_backend import SplitBackend
from models.text.cross_attention import CrossReading
from models.text.linear_attention import Recurrence
from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visibility import Starts
from vkq_jax.passes.cross_pass import CrossPass
from vkq_jax.passes.decode import Decode, LayeredDecode
from vkq_jax.passes.layered_passes import attend_in_groups
from vkq_jax.passes.prefill import LayeredPrefill, Prefill
from vkq_jax.settings.layer_groups import Cells
from vkq_jax.sharding.bank_parts import TextPart
from vkq_jax.sharding.specs import CacheAxes, pass_specs

__all__ = ["attend", "read_pictures", "recurrence"]


type Passing = Prefill | Decode | LayeredPrefill | LayeredDecode


def attend[Pass: Passing](
    mesh: Mesh | None,
    passing: Pass,
    layer: Array | int,
    query: Array,
    key: Array,
    value: Array,
    *,
    starts: Starts | None,
    mask: Bool[Array, "B T T"] | None = None,
    **scores: Any,
) -> tuple[Array, Pass]:
    """`passing.attend(layer, query, key, value, ...)`, on the devices of a mesh.

    Nothing is sent between devices but, where they share KV heads, the tensors of the new tokens or
    queries and results (see `SplitBackend`), and where scores are calibrated at every step, counts.
    """
    masks = {} if mask is None else {"mask": mask}
    if mesh is None:
        attended = passing.attend(layer, query, key, value, starts=starts, **masks, **scores)
        return cast(tuple[Array, Pass], attended)
    layered = isinstance(passing, LayeredPrefill | LayeredDecode)
    alone, known = passing, None
    if layered:
        cells = passing.cells[: len(passing.parts)]
        whole = not passing.cross and passing.recurrent is None and len(passing.parts) > 1
        # A known layer has no branches of other groups; its number counts layers of all kinds.
        known = layer if whole and isinstance(layer, int) else None
        # Other kinds of layers are not read here.
        alone = dataclasses.replace(passing, cross=(), recurrent=None, moved=None, cells=cells)

    def attend_own(layer, query, key, value, own, starts, masks):
        layer = layer if known is None else known
        return own.attend(layer, query, key, value, starts=starts, **masks, **scores)

    axes = cache_axes(mesh, passing.unfinished)
    output, after = _on_own_parts(
        mesh, axes, attend_own, jnp.asarray(layer), query, (key, value), alone, (starts, masks)
    )
    if layered:
        names = ("cross", "recurrent", "moved", "cells")
        after = dataclasses.replace(after, **{name: getattr(passing, name) for name in names})
    return output, after


def _on_own_parts(
    mesh: Mesh,
    axes: CacheAxes,
    function: Callable[..., tuple[Array, Any]],
    layer: Array,
    query: Array,
    key_value: tuple[Array | None, Array | None],
    passing: Any,
    rows: tuple[Any, ...],
) -> tuple[Array, Any]:
    """`function(layer, query, key, value, passing, *rows)`, by each device on its own part.

    Args:
        mesh: of the model.
        axes: how attention is split.
        function: attends in a layer; gives the output and the pass after it.
        layer: its number, which all devices have.
        query, key_value: of all heads.
        passing: between two layers.
        rows: pytrees of arrays [B, ...].
    """

    def run_own(layer, query, key_value, own, rows):
        told = iter(text_in_parts)
        own = _map_passes(own, lambda part: _own_part(part, axes, next(told)))
        output, after = function(layer, query, *key_value, own, *rows)
        return output, [
            _changes(_counted(one, before, axes))
            for one, before in zip(_passes(after), _passes(own), strict=True)
        ]

    text_in_parts = [axes.splits_text(part.unfinished.cache_length) for part in _passes(passing)]
    heads = PartitionSpec(axes.sequences, None, axes.heads)
    kv_heads = PartitionSpec(axes.sequences, None, axes.kv_heads)
    specs = _specs_of(passing, axes)
    run = on_shards(
        mesh,
        run_own,
        (PartitionSpec(), heads, kv_heads, specs, PartitionSpec(axes.sequences)),
        (heads, [_changes(own) for own in _passes(specs)]),
    )
    # Or the compiler might split all around as attention is, and gather the projections' weights.
    data = data_axis(mesh, query.shape[0])
    between = PartitionSpec(data, None, MODEL)
    query = place(mesh, query, between)
    key_value = place(mesh, key_value, PartitionSpec(data, None, KV_HEADS))
    rows = place_sequences(mesh, rows)
    before = place(mesh, passing, _specs_of(passing, dataclasses.replace(axes, counts=data)))
    output, changes = run(layer, query, key_value, before, rows)
    changes = iter(changes)
    after = _map_passes(passing, lambda part: _with_changes(part, next(changes)))
    return place(mesh, output, between), after


def read_pictures(
    mesh: Mesh | None,
    passing: Passing,
    features: Float[Array, "B V hidden_size"] | None,
    logits_scale: float,
    observe: Callable[[Array, AnyCache, Array, Starts | None], Any] = lambda *_: None,
) -> CrossReading | None:
    """The pictures that cross-attention layers read in a pass; None without layers or pictures.

    `features` are those of the prompt's own pictures. `observe(query, cache, layer, starts)` gives
    what the attention of a layer hands on, see `models.generation.decode_step.observed_step`.
    """
    cross = passing.cross if isinstance(passing, LayeredPrefill | LayeredDecode) else ()
    if not cross or cross[0].is_empty:
        return None
    starts = cross[0].starts

    def attend(layer, query, key, value, passing):
        if mesh is None:
            output, after = passing.attend_cross(
                layer, query, key, value, logits_scale=logits_scale
            )
            return output, after, observe(query, passing.unfinished.cross_cache, layer, starts)
        cache = passing.unfinished
        output, after = _on_own_parts(
            mesh,
            cache_axes(mesh, cache),
            partial(
                _attend_cross,
                cells=cache.cells[1:],
                num_kv_heads=cache.num_kv_heads,
                logits_scale=logits_scale,
            ),
            jnp.asarray(layer),
            query,
            (key, value),
            passing.cross,
            (),
        )
        seen = observe(query, cache.cross_cache, layer, starts)
        return output, dataclasses.replace(passing, cross=after), seen

    return CrossReading(attend, features, cross[0].sees)


def _attend_cross(
    layer: Array,
    query: Array,
    key: Array | None,
    value: Array | None,
    own: tuple[CrossPass, ...],
    *,
    cells: tuple[Cells, ...],
    num_kv_heads: int,
    logits_scale: float,
) -> tuple[Array, tuple[CrossPass, ...]]:
    options = {"logits_scale": logits_scale}
    return attend_in_groups(own, cells, num_kv_heads, layer, (query, key, value), options)


def _specs_of(passing: Any, axes: CacheAxes) -> Any:
    """The pass with a `PartitionSpec` in the place of each array."""
    if isinstance(passing, tuple):
        return tuple(pass_specs(own, axes) for own in passing)
    return pass_specs(passing, axes)


type OnePass = Prefill | Decode | CrossPass


def _passes(passing: Passing | tuple[CrossPass, ...]) -> tuple[OnePass, ...]:
    """The passes over caches of one setting that a pass consists of."""
    if isinstance(passing, tuple):
        return passing
    return passing.parts if isinstance(passing, LayeredPrefill | LayeredDecode) else (passing,)


def _map_passes(passing: Any, function: Callable[[Any], Any]) -> Any:
    """The pass with `function` of each of `_passes`."""
    if isinstance(passing, tuple):
        return tuple(map(function, passing))
    if isinstance(passing, LayeredPrefill | LayeredDecode):
        return dataclasses.replace(passing, parts=tuple(map(function, passing.parts)))
    return function(passing)


def _own_part[Pass: OnePass](own: Pass, axes: CacheAxes, text_in_parts: bool) -> Pass:
    """The pass on one device's arrays, its text bank and backend told which part they are of."""
    if axes.parts is None:
        return own
    assert isinstance(own.backend, SplitBackend)
    cache, text = own.unfinished, own.unfinished.text
    if text_in_parts:
        first = jax.lax.axis_index(axes.parts) * text.cache_length
        text = TextPart(length=text.length, index=text.index, **_stored(text), first=first)
    backend = dataclasses.replace(own.backend, on_device=True)
    cache = dataclasses.replace(cache, text=text)
    return dataclasses.replace(own, unfinished=cache, backend=backend)


def _counted[Pass: OnePass](after: Pass, before: Pass, axes: CacheAxes) -> Pass:
    """The pass with the calibrations that all devices of its sequences left out in a layer."""
    if not _counts(after) or axes.heads is None:
        return after
    more = jax.lax.psum(after.skipped - before.skipped, axes.heads)
    return dataclasses.replace(after, skipped=before.skipped + more)


def _counts(passing: OnePass) -> bool:
    """Whether scores are calibrated at every step, which may leave a calibration out."""
    cache = passing.unfinished
    return cache.quant.calibration is not None and cache.score_map is None


def _changes(passing: OnePass) -> dict[str, Any]:
    """The fields that a layer's attention changes."""
    names = ("done", *["coded"] * hasattr(passing, "coded"), *["skipped"] * _counts(passing))
    changed = {name: getattr(passing, name) for name in names}
    return changed | {"text": _stored(passing.unfinished.text)}


def _with_changes[Pass: OnePass](passing: Pass, changes: dict[str, Any]) -> Pass:
    """The pass with other `_changes`."""
    cache = passing.unfinished
    text = dataclasses.replace(cache.text, **changes["text"])
    fields = {name: value for name, value in changes.items() if name != "text"}
    cache = dataclasses.replace(cache, text=text)
    return dataclasses.replace(passing, unfinished=cache, **fields)


def recurrence(
    passing: Passing,
) -> Recurrence | None:
    """Where layers of linear attention find their states in a pass; None without such layers."""
    if not isinstance(passing, LayeredPrefill | LayeredDecode) or passing.recurrent is None:
        return None
    return Recurrence(
        passing.valid,
        lambda layer, passing: passing.state(layer),
        lambda layer, state, passing: passing.with_state(layer, state),
    )


def _stored(text: TextBank) -> dict[str, Any]:
    """The fields of a text bank that a layer's attention changes."""
    return {name: getattr(text, name) for name in ("key", "value", "key_scale", "value_scale")}
