"""Caches of a shape without a model: abstract ones, and what one sequence takes in bytes."""

import dataclasses

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels.shapes import ModelShape
from vkq_apps.bench.codes import MeasuredCodes
from vkq_apps.bench.dictionary_banks import random_tables
from vkq_jax.array_types import Array, Float
from vkq_jax.cache.accounting import CacheBytes
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import quantize_visual
from vkq_jax.codes.code_tables import CodeTables

__all__ = [
    "abstract_cache",
    "abstract_tables",
    "per_sequence",
    "random_layer",
    "random_tables_of",
    "random_tokens",
    "repeated_cache",
]


def random_layer(
    key: jax.Array,
    shape: ModelShape,
    visual: int,
    text: int,
    codes: MeasuredCodes,
    implementation: str | None = None,
) -> LayerCache:
    """One layer of one sequence, as `implementation` reads it, with a full text bank.

    Keys and values are random, their channels of different scales. Tables are random, too, where
    the codes have any.
    """
    quant, tables = codes.quant, None
    if codes.has_tables:
        tables = random_tables(quant, shape.num_kv_heads, shape.head_dim, key)

    def tensor(number: int, positions: int) -> Float[Array, "1 S K H"]:
        dims = (1, positions, shape.num_kv_heads, shape.head_dim)
        return random_tokens(jax.random.fold_in(key, number), dims)

    index = jnp.arange(visual, dtype=jnp.int32)[None]
    bank = quantize_visual(
        tensor(0, visual), tensor(1, visual), index, jnp.ones((1, visual), bool), quant, tables
    )
    bank = pallas_kernels.to_kernel_layout(bank, implementation=implementation)
    text_key, text_value = (tensor(number, text).swapaxes(1, 2) for number in (2, 3))
    length = jnp.full(1, text, jnp.int32)
    bank_of_text = TextBank(text_key, text_value, length)
    if codes.text_bits is not None:
        bank_of_text = bank_of_text.in_8_bits()
    return LayerCache((bank,), bank_of_text, quant=quant, tables=tables)


def random_tokens(key: jax.Array, dims: tuple[int, ...]) -> Float[Array, "B S K H"]:
    """Random keys or values in bfloat16, whose channels have offsets and sizes of their own."""
    size, offset = jax.random.normal(jax.random.fold_in(key, 1), (2, 1, 1, *dims[2:]))
    return (jax.random.normal(key, dims) * jnp.exp(0.5 * size) + offset).astype(jnp.bfloat16)


def abstract_visual(shape: ModelShape) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Keys (or values) of one layer of one sequence as they are coded, and their index."""
    dims = (1, shape.visual_tokens, shape.num_kv_heads, shape.head_dim)
    return jax.ShapeDtypeStruct(dims, jnp.bfloat16), jax.ShapeDtypeStruct(dims[:2], jnp.int32)


def abstract_tables(shape: ModelShape, codes: MeasuredCodes) -> CodeTables | None:
    """Tables of one layer without memory; None where the codes have none."""
    if not codes.has_tables:
        return None

    def make(key: jax.Array) -> CodeTables | None:
        return random_tables(codes.quant, shape.num_kv_heads, shape.head_dim, key)

    return jax.eval_shape(make, jax.random.key(0))


def abstract_cache(
    shape: ModelShape,
    codes: MeasuredCodes,
    batch: int,
    text_capacity: int,
    implementation: str | None = None,
) -> KVCache:
    """The whole cache of `batch` sequences without memory, as prefill leaves it for the default."""

    def make(key: jax.Array) -> KVCache:
        visual = shape.visual_tokens
        layer = random_layer(key, shape, visual, text_capacity, codes, implementation)
        return repeated_cache(layer, shape, batch, 0)

    return jax.eval_shape(make, jax.random.key(0))


def repeated_cache(layer: LayerCache, shape: ModelShape, batch: int, text_length: int) -> KVCache:
    """A cache whose layers and sequences all hold this `random_layer`, as a prefill leaves it.

    The text bank has room for all of the layer's text and holds `text_length` tokens.
    """

    def counts(number: int) -> jax.Array:
        return jnp.full(batch, number, jnp.int32)

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (shape.num_layers, batch, *x.shape[1:]))

    visual, text = jax.tree.map(repeat, (layer.visual, layer.text))
    return KVCache(
        tuple(dataclasses.replace(bank, length=counts(shape.visual_tokens)) for bank in visual),
        dataclasses.replace(text, length=counts(text_length)),
        position=counts(shape.visual_tokens + text_length),
        calibration_skipped=counts(0),
        quant=layer.quant,
        tables=_of_all_layers(layer.tables, shape),
    )


def random_tables_of(codes: MeasuredCodes, shape: ModelShape, key: jax.Array) -> CodeTables | None:
    """Tables of all layers, those of one `random_layer`; None where the codes have none."""
    if not codes.has_tables:
        return None
    tables = random_tables(codes.quant, shape.num_kv_heads, shape.head_dim, key)
    return _of_all_layers(tables, shape)


def _of_all_layers(tables: CodeTables | None, shape: ModelShape) -> CodeTables | None:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (shape.num_layers, *x.shape)), tables)


def per_sequence(nbytes: CacheBytes, batch: int) -> dict[str, int]:
    """Bytes of one of `batch` equal sequences, by what they hold."""
    return {
        "visual_codes": nbytes.visual_codes // batch,
        "visual_tables": nbytes.visual_tables // batch,
        "text": nbytes.text // batch,
        "total": nbytes.total // batch,
    }
