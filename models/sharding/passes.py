"""A pass over a cache, each device on its own sequences and heads."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from models.sharding.axes import KV_HEADS, MODEL
from models.sharding.placing import attention_axes, data_axis, on_shards, place, place_sequences
from models.sharding.split_backend import SplitBackend
from models.text.cross_attention import CrossReading
from models.text.linear_attention import Recurrence
from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.bank_parts import TextPart
from vkq_jax.decode import Decode, LayeredDecode
from vkq_jax.prefill import LayeredPrefill, Prefill
from vkq_jax.sharding import CacheAxes, pass_specs
from vkq_jax.text_bank import TextBank
from vkq_jax.visibility import Starts

__all__ = ["attend", "read_pictures", "recurrence"]


def attend[Pass: Prefill | Decode | LayeredPrefill | LayeredDecode](
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
    assert isinstance(passing, Prefill | Decode)  # see `place_cache`
    cache = passing.unfinished
    batch = cache.position.shape[0]
    axes = attention_axes(mesh, batch)
    counts = cache.quant.calibration is not None and cache.score_map is None

    def attend_own(layer, query, key, value, own, starts, masks):
        own = _own_part(own, axes, text_in_parts)
        output, after = own.attend(layer, query, key, value, starts=starts, **masks, **scores)
        skipped = None
        if counts:
            skipped = own.skipped + jax.lax.psum(after.skipped - own.skipped, axes.heads)
        stored = _stored(after.unfinished.text)
        return output, stored, getattr(after, "coded", None), skipped, after.done

    heads = PartitionSpec(axes.sequences, None, axes.heads)
    kv_heads = PartitionSpec(axes.sequences, None, axes.kv_heads)
    rows = PartitionSpec(axes.sequences)
    specs = pass_specs(passing, axes)
    text_in_parts = axes.splits_text(cache.cache_length)
    coded_spec = getattr(specs, "coded", None)
    run = on_shards(
        mesh,
        attend_own,
        (PartitionSpec(), heads, kv_heads, kv_heads, specs, rows, rows),
        (heads, _stored(specs.unfinished.text), coded_spec, rows, PartitionSpec()),
    )
    # Or the compiler might split all around as attention is, and gather the projections' weights.
    data = data_axis(mesh, batch)
    between = PartitionSpec(data, None, MODEL)
    query = place(mesh, query, between)
    key, value = place(mesh, (key, value), PartitionSpec(data, None, KV_HEADS))
    starts, masks = place_sequences(mesh, (starts, masks))
    before = place(mesh, passing, pass_specs(passing, dataclasses.replace(axes, counts=data)))
    output, stored, coded, skipped, done = run(
        jnp.asarray(layer), query, key, value, before, starts, masks
    )
    changes: dict[str, Any] = {
        "unfinished": dataclasses.replace(cache, text=dataclasses.replace(cache.text, **stored)),
        "done": done,
        **({} if coded is None else {"coded": coded}),
        **({} if skipped is None else {"skipped": skipped}),
    }
    return place(mesh, output, between), dataclasses.replace(passing, **changes)


def read_pictures(
    passing: Prefill | Decode | LayeredPrefill | LayeredDecode,
    features: Float[Array, "B V hidden_size"] | None,
    logits_scale: float,
) -> CrossReading | None:
    """The pictures that cross-attention layers read in a pass; None without layers or pictures.

    `features` are those of the prompt's own pictures. No mesh: see `TextConfig.check_one_stack`.
    """
    cross = passing.cross if isinstance(passing, LayeredPrefill | LayeredDecode) else None
    if cross is None or cross.is_empty:
        return None

    def attend(layer, query, key, value, passing):
        output, passing = passing.attend_cross(layer, query, key, value, logits_scale=logits_scale)
        return output, passing, None

    return CrossReading(attend, features, cross.sees)


def _own_part[Pass: (Prefill, Decode)](own: Pass, axes: CacheAxes, text_in_parts: bool) -> Pass:
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


def recurrence(
    passing: Prefill | Decode | LayeredPrefill | LayeredDecode,
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
