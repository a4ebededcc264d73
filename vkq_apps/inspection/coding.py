"""Caches of a prompt that was caught at full precision, and what coding leaves of its tensors."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import Model
from models.attached_tables import OwnTables
from models.generation.recoding import FULL_PRECISION, recode
from models.text.coded_layers import coded_layers
from vkq_apps.inspection.capture import Capture
from vkq_apps.inspection.ranges import ChannelRanges, channel_ranges
from vkq_apps.inspection.spending import bits_of_tokens
from vkq_jax.array_types import Array, Float
from vkq_jax.cache.head_groups import take_cells
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.pytree import take_layer
from vkq_jax.settings.layer_groups import Cells, LayerGroups, Quant, groups_of

__all__ = ["Coded", "code", "exact_cache", "what_coding_leaves"]


def exact_cache(caught: Capture) -> KVCache:
    """The full-precision cache of these layers [L, 1, K, ...]: what generation with "none" has."""
    length = {
        name: jnp.full(1, tensor.shape[2], jnp.int32)
        for name, tensor in (("visual", caught.key), ("text", caught.text_key))
    }
    attention = None if caught.attention is None else caught.attention[:, None]
    key, value = DenseTensor(caught.key[:, None], attention), DenseTensor(caught.value[:, None])
    # Layers without text have a slot that stays empty.
    room = ((0, 0), (0, 0), (0, 0), (0, int(not caught.text_key.shape[2])), (0, 0))
    text_key, text_value = (jnp.pad(x[:, None], room) for x in (caught.text_key, caught.text_value))
    text = TextBank(text_key, text_value, length["text"])
    return KVCache(
        (VisualBank(key, value, length["visual"], position=caught.position),),
        text,
        position=length["visual"] + length["text"],
        calibration_skipped=jnp.zeros(1, jnp.int32),
        quant=FULL_PRECISION,
    )


def code(model: Model, caught: Capture, quant: Quant, tables: OwnTables) -> AnyCache:
    """The cache of these layers as generation with the model's `quant` and `tables` codes it."""
    text, layers = model.config.text, caught.layers
    kinds = [kind.layers for kind in coded_layers(text)]
    before = sum(len(groups_of(quant, own)) for own in kinds[: kinds.index(layers)])
    first = before + bool(text.cross_layers)  # their cache has a part for text in front
    groups = groups_of(quant, layers)
    own = tables[first : first + len(groups)] if isinstance(tables, tuple) else tables
    if not isinstance(quant, LayerGroups):
        own = own[0] if isinstance(own, tuple) else own
        return recode(model, exact_cache(caught), quant, own)
    places = ((cells.within(layers), settings) for cells, settings in groups)
    return recode(model, exact_cache(caught), LayerGroups(tuple(places)), own)


class Coded(NamedTuple):
    """The visual tensors of all layers and heads, before and after coding, float32.

    Attributes:
        key, value: what the codes describe: keys without a bias that the cache keeps out of them.
        key_hat, value_hat: the same, decoded.
        key_ranges, value_ranges: of channels; NaN where a group of heads has no levels.
        bits: per element of each token, mean over heads, keys and values.
    """

    key: Float[Array, "L K V H"]
    value: Float[Array, "L K V H"]
    key_hat: Float[Array, "L K V H"]
    value_hat: Float[Array, "L K V H"]
    key_ranges: ChannelRanges
    value_ranges: ChannelRanges
    bits: Float[Array, "L V"]


def what_coding_leaves(caught: Capture, cache: AnyCache) -> Coded:
    """Tensors, ranges and bits of a cache from `code`, of each layer and head as it is coded."""
    layers, heads, visual, _ = caught.key.shape
    every = Cells(tuple(range(layers)))
    groups = (every,) if isinstance(cache, KVCache) else cache.cells
    parts = [_of_part(caught, part, own) for part, own in zip(cache.parts, groups, strict=True)]
    bits = jnp.zeros((layers, visual), jnp.float32)
    for own, part in zip(groups, parts, strict=True):
        share = 1.0 if own.heads is None else len(own.heads[0]) / heads
        bits = bits.at[jnp.asarray(own.layers)].add(share * part.bits)

    def joined(axis: int, *arrays: Array) -> Array:
        return _joined(groups, arrays, (layers, heads), axis)

    tensors = zip(*(part[:4] for part in parts), strict=True)
    key, value, key_hat, value_hat = (joined(0, *arrays) for arrays in tensors)
    key_ranges = _joined_ranges([part.key_ranges for part in parts], joined)
    value_ranges = _joined_ranges([part.value_ranges for part in parts], joined)
    return Coded(key, value, key_hat, value_hat, key_ranges, value_ranges, bits)


def _of_part(caught: Capture, part: KVCache, cells: Cells) -> Coded:
    """`what_coding_leaves` of the layers and heads that a part of a cache has."""
    key, value = (x.astype(jnp.float32) for x in take_cells((caught.key, caught.value), cells))
    (bank,) = part.visual
    numbers = jnp.arange(part.num_layers, dtype=jnp.int32)
    bias = part.key_bias
    if bias is not None:
        position = caught.position
        assert position is not None
        share = jax.vmap(lambda n: bias.of_layer(n).rotated(position)[0])(numbers)
        key = key - jnp.swapaxes(share, 1, 2)

    def decode(number: Array) -> tuple[Array, Array]:
        return bank.of_layer(number).dequantize(take_layer(part.tables, number))

    key_hat, value_hat = (x[:, 0] for x in jax.lax.map(decode, numbers))
    coded_key, coded_value, class_map = jax.tree.map(
        lambda x: x[:, 0], (bank.key, bank.value, bank.class_map)
    )
    alone = VisualBank(coded_key, coded_value, bank.length, class_map=class_map)
    return Coded(
        key,
        value,
        key_hat,
        value_hat,
        channel_ranges(key, key_hat, coded_key),
        channel_ranges(value, value_hat, coded_value),
        bits_of_tokens(alone, key.shape),
    )


def _joined(
    groups: tuple[Cells, ...], arrays: tuple[Array, ...], shape: tuple[int, int], axis: int
) -> Array:
    """One array of all L layers and K heads, which stand at `axis` and after it, from groups'."""
    moved = [jnp.moveaxis(x, (axis, axis + 1), (0, 1)) for x in arrays]
    whole = jnp.zeros((*shape, *moved[0].shape[2:]), moved[0].dtype)
    for cells, x in zip(groups, moved, strict=True):
        layers = jnp.asarray(cells.layers)[:, None]
        heads = jnp.arange(shape[1])[None] if cells.heads is None else jnp.asarray(cells.heads)
        whole = whole.at[layers, heads].set(x)
    return jnp.moveaxis(whole, (0, 1), (axis, axis + 1))


def _joined_ranges(parts: list[ChannelRanges], joined: Callable[..., Array]) -> ChannelRanges:
    """Ranges of all layers and heads; a part whose channels are not rotated stands as it is."""
    quantiles = [part.quantiles for part in parts]
    coded = [part.quantiles if (x := part.coded_quantiles) is None else x for part in parts]

    def levels(name: str) -> Array | None:
        found = [getattr(part, name) for part in parts]
        if all(x is None for x in found):
            return None
        nothing = [jnp.full(x.shape[1:], jnp.nan, jnp.float32) for x in quantiles]
        return joined(0, *(y if x is None else x for x, y in zip(found, nothing, strict=True)))

    return ChannelRanges(
        joined(1, *quantiles),
        None if all(part.coded_quantiles is None for part in parts) else joined(1, *coded),
        levels("lowest"),
        levels("highest"),
    )
