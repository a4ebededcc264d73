"""Random banks of one layer for the fused kernel.

Their words are random: attention does not care what they mean.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import TiledLevels, TiledSigns
from pallas_kernels.attention.banks import Banks, DenseBank
from pallas_kernels.layout import layouts
from vkq_apps.bench.cases import Case
from vkq_apps.bench.dictionary_banks import random_bank, random_tables
from vkq_jax.array_types import Array, Int32
from vkq_jax.cache.key_bias import KeyBias, visual_reach
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables

__all__ = ["Seen", "random_banks"]

Seen = dict[str, Int32[Array, "B 1"]]  # by bank


def random_banks(
    case: Case, seed: int, *, ragged: bool = False
) -> tuple[Banks, Seen, Seen, CodeTables | None, KeyBias | None]:
    """Random banks of one layer, where what the queries see of them ends and begins, tables, bias.

    The ends are those of dense banks; without a window there are no beginnings.

    Ragged: the first sequence is full, the next has no visual tokens, text lengths vary.
    """
    rng = np.random.default_rng(seed)

    def lengths(positions):
        length = np.full(case.batch, positions)
        if ragged:
            length[1:] = rng.integers(0, positions, case.batch - 1)
        return length

    visual = lengths(case.positions)
    if ragged:
        visual[1] = 0
    visual = jnp.asarray(visual, jnp.int32)
    tensors, dense = _random_tensors(case, _key(seed))
    visible = {}
    if "visual" in dense:
        visible["visual"] = visual[:, None]
    if "text" in dense:
        visible["text"] = jnp.asarray(lengths(case.text), jnp.int32)[:, None]
    packed = VisualBank(key=tensors[0], value=tensors[1], length=visual) if tensors else None
    tables = None
    if case.dictionary is not None:
        tables = _random_tables(case, _key(seed))
        packed = _random_dictionary(case, visual, _key(seed))
    starts = {}
    if case.window is not None:
        ends = visible if packed is None else visible | {"packed": visual[:, None]}
        starts = {name: jnp.maximum(end - case.window, 0) for name, end in ends.items()}
    bias = None
    if case.key_bias:
        assert packed is not None
        position = _positions(case)
        packed = dataclasses.replace(packed, position=jnp.asarray(position))
        bias = _random_bias(case, _key(seed))
        if case.key_bias != "any":
            bias = bias.with_waves(visual_reach([position]), case.positions)
            assert bias.waves is not None
    return Banks(packed, dense), visible, starts, tables, bias


def _key(seed: int) -> jax.Array:
    """A key whose generator, unlike the default one, compiles in no time."""
    return jax.random.key(seed, impl="unsafe_rbg")


@functools.partial(jax.jit, static_argnames="case")
def _random_bias(case: Case, key: jax.Array) -> KeyBias:
    half = case.head_dim // 2
    frequencies = 1e4 ** -(jnp.arange(half, dtype=jnp.float32) / half)
    axes = None
    if case.key_bias == "picture":
        axes = tuple((np.arange(half) * 8 // half * 3 // 8).tolist())
    return KeyBias(2 * jax.random.normal(key, (case.kv_heads, case.head_dim)), frequencies, axes)


def _positions(case: Case) -> Int32[np.ndarray, "B V *axes"]:
    """Positions of the visual tokens, which begin at another one in each sequence."""
    number, first = np.arange(case.positions), 16 + np.arange(case.batch)
    if case.key_bias != "picture":
        return (first[:, None] + number).astype(np.int32)
    width = math.isqrt(case.positions)
    axes = np.stack([0 * number, number // width, number % width], axis=-1)
    return (first[:, None, None] + axes).astype(np.int32)


@functools.partial(jax.jit, static_argnames="case")
def _random_tables(case: Case, key: jax.Array) -> CodeTables | None:
    assert case.dictionary is not None
    return random_tables(case.dictionary, case.kv_heads, case.head_dim, key)


@functools.partial(jax.jit, static_argnames="case")
def _random_dictionary(case: Case, length: Int32[Array, "B"], key: jax.Array) -> VisualBank:
    assert case.dictionary is not None
    lead = (1, case.batch, case.kv_heads)
    return random_bank(case.dictionary, lead, case.positions, case.head_dim, length, key)


@functools.partial(jax.jit, static_argnames="case")
def _random_tensors(case: Case, key: jax.Array) -> tuple[list[Any], dict[str, DenseBank]]:
    """Packed keys and values, if any, and dense banks; of one layer."""
    keys = iter(jax.random.split(key, 16))
    lead = (1, case.batch, case.kv_heads)
    group_size = case.group_size or case.positions
    groups = -(-case.positions // group_size)

    def stored(table):
        return layouts.pad_channels(table.astype(jnp.bfloat16))

    def tensor(side):
        count = layouts.key_words if side == "key" else layouts.value_words
        words = (*lead, case.code_bits * count(case.positions, case.head_dim))
        packed = jax.random.bits(next(keys), words, jnp.uint32)
        shared: dict[str, Any] = {
            "side": side,
            "num_positions": case.positions,
            "head_dim": case.head_dim,
        }
        table = (*lead, groups, case.head_dim)
        centre = 0.3 * jax.random.normal(next(keys), table)
        if case.codes.startswith("levels"):
            step = jax.random.uniform(next(keys), table, minval=0.5, maxval=2.5)
            lower, upper = (stored(centre + s * step) for s in (-0.5, 0.5))
            return TiledLevels(
                packed, lower, upper, group_size=group_size, bits=case.code_bits, **shared
            )
        positions = jnp.exp(0.3 * jax.random.normal(next(keys), (*lead, case.positions)))
        if case.codes == "signs8":
            scale = jnp.clip(jnp.round(8 * jnp.log2(positions)) + 128, 1, 255).astype(jnp.uint8)
        else:
            scale = positions.astype(jnp.bfloat16)
        return TiledSigns(
            packed,
            stored(centre),
            layouts.tile_scales(scale),
            rotated=True,
            score_error_factor=0.01,
            **shared,
        )

    def dense(positions):
        shape = (*lead, positions, case.head_dim)
        return DenseBank(*(jax.random.normal(next(keys), shape, jnp.bfloat16) for _ in range(2)))

    is_dense = case.codes == "bfloat16"
    banks = {"visual": dense(case.positions)} if is_dense else {}
    if case.text:
        banks["text"] = dense(case.text)
    if case.text and case.text_bits == 8:
        full = jnp.full(case.batch, case.text, jnp.int32)
        text = TextBank(banks["text"].key, banks["text"].value, full).in_8_bits()
        banks["text"] = DenseBank(text.key, text.value, text.key_scale, text.value_scale)
    if is_dense or case.dictionary is not None:
        return [], banks
    return [tensor("key"), tensor("value")], banks
