"""Codes one full-precision cache with any preset, so that comparing many presets is cheap.

While a prompt is read its positions attend in full precision, whatever its cache is coded with
then. So the pictures are read once, with `none`, and every preset codes those keys and values.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from models.attached_tables import OwnTables
from models.generation.backend import ModelBackend
from models.model import Model
from models.sharding.placing import place_cache
from models.text.key_bias import key_bias_for
from vkq_jax.cache.any_cache import cells_of, map_parts
from vkq_jax.cache.head_groups import take_bias
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache, split_layers
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.codes.dense import Dense, DenseTensor
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.layer_groups import Cells, LayerGroups, Quant, groups_of
from vkq_jax.sharding.bank_parts import join_banks
from vkq_jax.slots import filled

__all__ = ["FULL_PRECISION", "recode"]

# The preset "none", with all that codes ask for.
FULL_PRECISION = KVQuantConfig(Dense(keeps_attention=True), Dense())


def recode(
    model: Model,
    cache: AnyCache,
    quant: Quant,
    tables: OwnTables = None,
    text_bits: TextBits = None,
    implementation: str | None = None,
) -> AnyCache:
    """The cache of prompts that `model` read with `none`, its visual tokens coded with `quant`.

    `models.generation.prefill` makes the same of these prompts with `quant`, `text_bits` and
    `implementation`.
    """
    backend = ModelBackend(implementation)
    if text_bits is not None:
        cache = map_parts(cache, lambda part: dataclasses.replace(part, text=part.text.in_8_bits()))
    kinds = tuple(zip(cache.parts, cells_of(cache), strict=True))
    own_tables = iter(tables if isinstance(tables, tuple) else itertools.repeat(tables))
    parts, cells = [], []
    for number, (part, own) in enumerate(kinds):
        groups = groups_of(quant, own.layers)
        if isinstance(cache, LayeredCache) and cache.cross and number == 0:  # text, nothing to code
            groups = ((own, groups_of(quant, cache.cross_layers)[0][1]),)
        places = ((each.within(own.layers), settings) for each, settings in groups)
        split = split_layers(join_banks(part), LayerGroups(tuple(places)))
        for each, (of_group, settings) in zip(split.parts, groups, strict=True):
            parts.append(_recode(model, each, settings, next(own_tables), of_group, backend))
            cells.append(of_group)
    given = quant if isinstance(quant, LayerGroups) else None
    if isinstance(cache, LayeredCache):  # layers of several kinds, as full precision is one setting
        recoded = dataclasses.replace(cache, parts=tuple(parts), cells=tuple(cells), given=given)
    else:
        recoded = parts[0] if given is None else LayeredCache(tuple(parts), tuple(cells))
    return place_cache(model.mesh, recoded)


def _recode(
    model: Model,
    cache: KVCache,
    quant: KVQuantConfig,
    tables: CodeTables | None,
    cells: Cells,
    backend: ModelBackend,
) -> KVCache:
    bias = take_bias(key_bias_for(model.module().text, quant), cells)
    banks = tuple(_code_bank(bank, quant, tables, bias, backend) for bank in cache.visual)
    return dataclasses.replace(cache, visual=banks, quant=quant, tables=tables, key_bias=bias)


def _code_bank(
    bank: VisualBank,
    quant: KVQuantConfig,
    tables: CodeTables | None,
    bias: KeyBias | None,
    backend: ModelBackend,
) -> VisualBank:
    assert isinstance(bank.key, DenseTensor)
    assert isinstance(bank.value, DenseTensor)
    taken = filled(bank.length, bank.key.values.shape[-2])
    index = jnp.where(taken, jnp.arange(taken.shape[-1], dtype=jnp.int32)[None], 0)

    def code_layer(layer):
        *pair, attention, own, number = layer
        key, value = (x.transpose(0, 2, 1, 3) for x in pair)  # [B, V, K, H]
        if bias is not None:
            assert bank.position is not None
            key = bias.of_layer(number).taken_out(key, bank.position)
        coded = backend.quantize(key, value, index, taken, quant, own, attention)
        return coded.key, coded.value, coded.class_map

    numbers = jnp.arange(len(bank.key.values), dtype=jnp.int32)
    layers = (bank.key.values, bank.value.values, bank.key.attention, tables, numbers)
    key, value, class_map = jax.lax.map(code_layer, layers)
    return dataclasses.replace(bank, key=key, value=value, class_map=class_map)
