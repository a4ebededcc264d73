"""A layer's visual tokens in dictionary codes, centres and codes each by a kernel.

Centres are those of the image, by k-means, or its mean and the codebook of a model's tables. XLA
finds the units of channels and the tokens that k-means begins with, as in plain coding.
"""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.isa.program import Run, run_on_gpu
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled_dictionary import TiledDictionary, stored_virtual
from pallas_kernels.quantize.centring import Around, around_centres, around_means
from pallas_kernels.quantize.class_block import SIDES
from pallas_kernels.quantize.class_kernel import ScaleRule
from pallas_kernels.quantize.classes import Coded, code_classes
from pallas_kernels.quantize.covered_tables import (
    learned_tables,
    unfused_planes_reason,
    unfused_tables_reason,
    virtual_of,
)
from pallas_kernels.quantize.gathering import Gathered, gather_tokens
from pallas_kernels.quantize.learned import code_learned
from pallas_kernels.quantize.lloyd_kernel import MOST_CENTRES
from pallas_kernels.quantize.order_kernel import MOST_POSITIONS, padded_capacities
from pallas_kernels.quantize.ordering import order_tokens
from vkq_jax.array_types import Array, Bool, Float, Int32, UInt32
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.dictionary_encoder import alike
from vkq_jax.codes.token_classes import ClassMap, capacities

__all__ = ["dictionary_bank", "unfused_pair_reason"]


def unfused_pair_reason(
    key: Array | jax.ShapeDtypeStruct,
    codes: tuple[DictionaryCodes, DictionaryCodes],
    num_positions: int,
    tables: CodeTables | None = None,
) -> str | None:
    """Why the kernels do not code keys and values like `key`; None if they do."""
    head_dim, first = key.shape[-1], codes[0]
    if head_dim not in layouts.HEAD_DIMS:
        return f"head_dim {head_dim} is none of {layouts.HEAD_DIMS}"
    if key.dtype != jnp.bfloat16:
        return f"activations in {key.dtype}, not bfloat16"
    if not num_positions:
        return "the bank has no positions"
    if num_positions > MOST_POSITIONS:
        return f"{num_positions} positions, more than {MOST_POSITIONS}"
    if first.table_dtype != "bfloat16":
        return f"tables in {first.table_dtype}, not bfloat16"
    if not min(capacities(first.classes, num_positions)):
        return "a class of tokens without slots"
    if any(c.uses_tables for c in codes):
        return unfused_tables_reason(codes, tables, *key.shape[-2:])
    if not alike(codes, None):
        return "keys and values in codes that differ in more than units and scales"
    if not 1 < first.centres <= MOST_CENTRES:
        return f"centres={first.centres}, not 2 to {MOST_CENTRES}"
    if codes[1].smoothing:
        return "values: channels in units of their own"
    return unfused_planes_reason(first)


def dictionary_bank(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    codes: tuple[DictionaryCodes, DictionaryCodes],
    tables: CodeTables | None = None,
    attention: Float[Array, "B K V"] | None = None,
    *,
    run: Run = run_on_gpu,
) -> VisualBank:
    """Visual tokens gathered and coded, in the layout of attention; see `unfused_pair_reason`.

    Mapped axes become part of the batch, those of tables are taken one by one; the codes have no
    gradient.

    Args:
        key, value, index, valid, attention: see `quantize_bank`; valid from the first position on.
        codes: of keys and of values. tables: those of the layer.
        run: runs the kernels; tests emulate them.
    """

    @jax.custom_batching.custom_vmap
    def code(operands):
        return _code(*operands, codes=codes, run=run)

    @code.def_vmap
    def fold(axis_size, in_batched, operands):
        def outward(x, batched):  # [Y, B, ...] -> [Y * B, ...]
            x = x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

        (*tokens, tables), (*batched, of_tables) = operands, in_batched[0]
        if any(jax.tree.leaves(of_tables)):
            spread = jax.tree.map(
                lambda x, b: x if b else jnp.broadcast_to(x, (axis_size, *x.shape)),
                operands,
                tuple(in_batched[0]),
            )
            banks = jax.lax.map(code, spread)
            return banks, jax.tree.map(lambda _: True, banks)
        bank = code((*jax.tree.map(outward, tokens, batched), tables))
        unfolded = jax.tree.map(
            lambda x: x.reshape(axis_size, x.shape[0] // axis_size, *x.shape[1:]), bank
        )
        return unfolded, jax.tree.map(lambda _: True, unfolded)

    return code(jax.lax.stop_gradient((key, value, index, valid, attention, tables)))


@functools.partial(jax.jit, static_argnames=("codes", "run"))
def _code(
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    index: Int32[Array, "B V"],
    valid: Bool[Array, "B V"],
    attention: Float[Array, "B K V"] | None,
    tables: CodeTables | None,
    codes: tuple[DictionaryCodes, DictionaryCodes],
    run: Run,
) -> VisualBank:
    """Centres the tokens, puts them in the order of their classes, and codes them."""
    batch, _, kv_heads, head_dim = key.shape
    positions, settings, lead = index.shape[1], codes[0], (batch, kv_heads)
    per_head = jnp.broadcast_to(valid[:, None], (*lead, positions)).reshape(-1, positions)
    gathered = gather_tokens(key, value, index, valid, run=run)
    if settings.codebook:
        assert tables is not None
        around = around_means(gathered, valid, codes, tables, run=run)
    else:
        around = around_centres(gathered, per_head, codes, run=run)
    if attention is not None:
        attention = attention.reshape(-1, positions)
    number, slot, count = order_tokens(
        around.energy, per_head, settings.classes, attention, run=run
    )
    class_map = ClassMap.from_classes(number, settings.classes)
    sizes = class_map.capacities
    virtual = [virtual_of(c, head_dim) for c in codes]
    stored = virtual
    if settings.learned:
        stored = [tuple(map(stored_virtual, map(max, *virtual)))] * 2
    coded = _code_slots(gathered, slot, around, sizes, stored[0], codes, tables, run)
    numbers = _tiled_numbers(
        around.ids, slot, sizes, None if settings.codebook else settings.id_bits
    )
    centre = jnp.where(gathered.spoilt[..., None, None], jnp.nan, around.centre)
    centre = centre.astype(jnp.bfloat16)

    def shaped(x: Array) -> Array:
        return x.reshape(*lead, *x.shape[1:])

    def tensor(side: int) -> TiledDictionary:
        (words, scales), own, unit = coded[side], codes[side], around.unit
        return TiledDictionary(
            tuple(map(shaped, words)),
            tuple(None if x is None else shaped(x) for x in scales),
            shaped(centre[side]),
            tuple(shaped(x[side]) for x in numbers),
            shaped(count),
            None if unit is None or not own.smoothing else shaped(unit[side]),
            side=SIDES[side],
            virtual=virtual[side],
            stored=stored[side],
            capacities=sizes,
            head_dim=head_dim,
            num_positions=positions,
            id_bits=settings.id_bits,
            codebook=settings.codebook > 0,
            learned=settings.learned,
            scaled=own.scale is not None,
        )

    return VisualBank(
        tensor(0),
        tensor(1),
        valid.sum(-1, dtype=jnp.int32),
        class_map=dataclasses.replace(class_map, words=shaped(class_map.words), valid=None),
    )


def _code_slots(
    gathered: Gathered,
    slot: Int32[Array, "heads S"],
    around: Around,
    sizes: tuple[int, ...],
    stored: tuple[int, ...],
    codes: tuple[DictionaryCodes, DictionaryCodes],
    tables: CodeTables | None,
    run: Run,
) -> list[Coded]:
    """Words and scales of the classes of keys and of values, tokens in the order of slots."""
    if codes[0].learned:
        assert around.book is not None
        assert tables is not None
        return code_learned(
            gathered.x,
            slot,
            around.ids,
            around.centre,
            around.book,
            learned_tables(tables, stored),
            capacities=sizes,
            stored=stored,
            rules=(codes[0].scale, codes[1].scale),
            run=run,
        )
    return code_classes(
        gathered.x,
        slot,
        around.ids,
        around.centre,
        around.unit,
        around.book,
        capacities=sizes,
        planes=[int(c.planes) for c in codes[0].classes],
        rules=cast(tuple[ScaleRule, ScaleRule], tuple(c.scale for c in codes)),
        run=run,
    )


def _tiled_numbers(
    ids: Int32[Array, "2 heads V"],
    slot: Int32[Array, "heads S"],
    sizes: tuple[int, ...],
    bits: int | None,
) -> list[UInt32[Array, "2 heads blocks _ _"]]:
    """Numbers of centroids in the order of slots, for each class; bytes where `bits` is None.

    All classes in one, because XLA makes kernels for each otherwise.
    """
    chosen = jnp.take_along_axis(
        ids, jnp.stack([jnp.maximum(slot, 0)] * 2), axis=-1, mode="promise_in_bounds"
    )
    stops = np.cumsum(padded_capacities(sizes))[:-1].tolist()
    classes = jnp.split(jnp.where(slot < 0, 0, chosen), stops, axis=-1)
    blocks = [layouts.num_blocks(x.shape[-1]) for x in classes]
    filled = [
        jnp.pad(x, ((0, 0), (0, 0), (0, layouts.BLOCK * n - x.shape[-1])))
        for x, n in zip(classes, blocks, strict=True)
    ]
    whole = jnp.concatenate(filled, axis=-1)
    if bits is None:
        tiled = layouts.tile_scales(whole.astype(jnp.uint8))
    else:
        tiled = layouts.tile_ids(whole, bits)
    return jnp.split(tiled, np.cumsum(blocks)[:-1].tolist(), axis=2)
