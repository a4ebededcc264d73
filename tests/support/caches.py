"""Random caches and the settings that every attention implementation is tested with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import vkq_jax
from vkq_jax.attention import post_scaled as attention
from vkq_jax.attention import reference
from vkq_jax.cache.kv_cache import LayerCache
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank, quantize_visual


@dataclasses.dataclass(frozen=True)
class Shape:
    """One attention problem; `visual` has one (capacity, lengths) for each bank."""

    batch: int = 2
    num_queries: int = 1
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    cache_length: int = 9
    text: tuple[int, ...] = (5, 9)
    visual: tuple[tuple[int, tuple[int, ...]], ...] = ((70, (70, 33)),)


SHAPES = {
    "grouped queries, ragged": Shape(),
    "one query head per KV head": Shape(num_heads=2),
    "several queries": Shape(num_queries=3),
    "empty visual bank": Shape(visual=((70, (0, 70)),)),
    "two banks": Shape(visual=((70, (70, 1)), (40, (0, 40)))),
    "no visual bank": Shape(visual=()),
    "no text": Shape(text=(0, 0), visual=((33, (33, 7)),), num_queries=1),
    "head_dim 80": Shape(head_dim=80, num_heads=2, num_kv_heads=1),
}


_quantize = jax.jit(quantize_visual, static_argnames="quant")

# One program each: compiled operation by operation they take ten times as long.
_STATIC = ("logits_scale", "logits_soft_cap")
attend = jax.jit(attention.attend_cache, static_argnames=_STATIC)
oracle = jax.jit(reference.attend_cache, static_argnames=_STATIC)


def random_side_tables(
    codes: vkq_jax.Quantizer, kv_heads: int, head_dim: int, rng: np.random.Generator
) -> vkq_jax.SideTables:
    """Tables that fit the codes, of random numbers; each head has its own."""
    if not isinstance(codes, vkq_jax.DictionaryCodes):
        return vkq_jax.SideTables()

    def normal(*dims):
        return jnp.asarray(rng.normal(size=(kv_heads, *dims)), jnp.float32)

    classes = []
    for number in range(len(codes.classes)):
        virtual = codes.virtual_channels(number, head_dim)
        bits = rng.integers(1, 4, (kv_heads, head_dim))
        channel = rng.integers(0, head_dim, (kv_heads, virtual))
        shift = rng.integers(0, np.take_along_axis(bits, channel, -1))
        classes.append(
            vkq_jax.ClassTables(
                analysis=normal(head_dim, head_dim),
                synthesis=normal(head_dim, head_dim) if codes.metric else None,
                step=jnp.abs(normal(head_dim)) + 0.5,
                top=jnp.asarray(2**bits - 1, jnp.int32),
                channel=jnp.asarray(channel, jnp.int32),
                shift=jnp.asarray(shift, jnp.int32),
                weight=normal(virtual),
            )
        )
    return vkq_jax.SideTables(
        codebook=normal(codes.codebook, head_dim) if codes.codebook else None,
        metric=normal(head_dim, head_dim) if codes.metric else None,
        classes=tuple(classes) if codes.learned else None,
    )


def random_tables(
    quant: vkq_jax.KVQuantConfig, kv_heads: int, head_dim: int, seed: int = 0
) -> vkq_jax.CodeTables:
    """Tables of one layer, for keys and values."""
    rng = np.random.default_rng(seed)
    sides = (random_side_tables(x, kv_heads, head_dim, rng) for x in (quant.key, quant.value))
    return vkq_jax.CodeTables(*sides)


def random_layer(shape: Shape, quant: vkq_jax.KVQuantConfig, seed: int = 0):
    """A query `[B, T, N, H]` and a layer of a cache, both from a seed.

    Channels have unlike offsets and sizes, as real keys do.
    """
    rng = np.random.default_rng(seed)
    tables = random_tables(quant, shape.num_kv_heads, shape.head_dim, seed)

    def normal(*dims):
        return jnp.asarray(rng.normal(size=dims), jnp.float32)

    def kv(positions):
        x = normal(shape.batch, positions, shape.num_kv_heads, shape.head_dim)
        channels = (1, 1, shape.num_kv_heads, shape.head_dim)
        return x * jnp.exp(normal(*channels)) + 2.0 * normal(*channels)

    banks = []
    for capacity, lengths in shape.visual:
        valid = np.arange(capacity)[None] < np.asarray(lengths)[:, None]
        index = np.where(valid, np.arange(capacity)[None], 0)
        banks.append(
            _quantize(
                kv(capacity),
                kv(capacity),
                jnp.asarray(index, jnp.int32),
                jnp.asarray(valid),
                quant=quant,
                tables=tables,
            )
        )
    text = TextBank(
        kv(shape.cache_length).transpose(0, 2, 1, 3),
        kv(shape.cache_length).transpose(0, 2, 1, 3),
        jnp.asarray(shape.text, jnp.int32),
    )
    query = normal(shape.batch, shape.num_queries, shape.num_heads, shape.head_dim)
    return query, LayerCache(tuple(banks), text, quant=quant, tables=tables)


def in_bfloat16(pair):
    """A query and a layer, its tables' matrices in bfloat16, as calibration writes them."""
    query, layer = pair
    tables = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim > 2 else x, layer.tables)
    return query, dataclasses.replace(layer, tables=tables)


def with_score_map(layer: LayerCache, num_heads: int) -> LayerCache:
    """The layer with a static score map, unlike for each query head."""
    slope = jnp.linspace(0.3, 1.2, num_heads, dtype=jnp.float32)
    return dataclasses.replace(layer, score_map=vkq_jax.ScoreMap(slope, 2.0 - 3.0 * slope))


def random_starts(query: jax.Array, layer: LayerCache, seed: int = 0) -> vkq_jax.Starts:
    """Starts anywhere in what is filled of each bank; of the first query everything is hidden.

    But for its own text.
    """
    rng = np.random.default_rng(seed)
    batch, num_queries = query.shape[:2]

    def starts(length):
        drawn = rng.integers(0, np.asarray(length)[:, None] + 1, (batch, num_queries))
        drawn[0, 0] = length[0]
        return drawn

    visual = tuple(jnp.asarray(starts(bank.length), jnp.int32) for bank in layer.visual)
    own = np.asarray(layer.text.length)[:, None] - np.arange(num_queries, 0, -1)
    text = np.maximum(np.minimum(starts(layer.text.length), own), 0)
    return vkq_jax.Starts(visual, jnp.asarray(text, jnp.int32))


def relative_error(got: jax.Array, expected: jax.Array) -> float:
    """|got - expected| / |expected| over all elements."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30))


def deleted(tree) -> list[bool]:
    """Which buffers have been given away."""
    return [x.is_deleted() for x in jax.tree.leaves(tree)]


__all__ = [
    "SHAPES",
    "Shape",
    "VisualBank",
    "attend",
    "deleted",
    "oracle",
    "random_layer",
    "random_side_tables",
    "random_starts",
    "random_tables",
    "relative_error",
    "with_score_map",
]
