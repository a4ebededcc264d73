"""The share of a key bias in the scores of a packed bank: what a launch adds to them.

Where the bias knows a bound of its positions (`vkq_jax.KeyBias.with_waves`), the share is looked up
in the launch: a table [axes * N, columns] has the share of each position on each axis, for all
queries of the launch, and each token a word with the numbers of its positions. Nothing of the size
[B, K, Q, S] is made. Else XLA computes the share of each slot.

A column of the table is a query of a team, so that a lane finds those of its queries beside each
other: of two sets queries t and t + 4, which are columns 2t and 2t + 1 of the team's eight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.banks import Banks, packed_classes
from pallas_kernels.attention.body.slot_entries import SlotSpec
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import SET, KernelSpec
from pallas_kernels.attention.launch import Launch
from pallas_kernels.layout import layouts
from vkq_jax.array_types import Array, Float, Int32, UInt32
from vkq_jax.attention.post_scaled import bias_scores
from vkq_jax.bits.exact_einsum import large_einsum
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.pytree import frozen_pytree, take_layer

__all__ = ["BiasShare", "bias_operands", "bias_share", "entry_slots"]


@frozen_pytree
class BiasShare:
    """The share of a key bias in the scores of one layer of a packed bank, natural, float32.

    Attributes:
        rows: the share in each slot; with waves the factors of each query that these have, see
            `vkq_jax.KeyBias.coefficients`.
        waves: of positions below a bound. entries: of the tokens, as they came.
        class_words: of the map of their classes, of all layers, where they lie class by class.
    """

    rows: Float[Array, "B K Q S"]
    waves: Float[Array, "A N S"] | None = None
    entries: Int32[Array, "B V"] | None = None
    class_words: UInt32[Array, "L B K W"] | None = None


def bias_share(
    q: Float[Array, "B K Q H"], bank: VisualBank, layer: Int32[Array, ""] | int, bias: KeyBias
) -> BiasShare:
    """The share in the scores of one layer of a bank of all, for queries times `logits_scale`.

    Raises:
        ValueError: the bank does not know the positions of its tokens.
    """
    if bias.waves is None or bank.position is None:
        class_map = take_layer(bank.class_map, layer)
        return BiasShare(bias_scores(q, dataclasses.replace(bank, class_map=class_map), bias))
    words = None if bank.class_map is None else bank.class_map.words
    return BiasShare(bias.coefficients(q), bias.waves, bias.entries(bank.position), words)


def bias_operands(
    spec: KernelSpec,
    rows: Float[Array, "Z B K Q S"],
    waves: Float[Array, "A N S"] | None,
    banks: Banks,
    of_layer: dict[str, Int32[Array, "1"]],
    launch: Launch,
) -> dict[str, Array]:
    """A `BiasShare` with an axis Z in front, by operand name; `of_layer` is the layer's number.

    The share of each class's slots [rows, slots of whole blocks]; or bias [axes * N, columns] and
    the entries of all slots of whole blocks [sequences or heads, slots].
    """
    assert banks.packed is not None
    classes, entries = packed_classes(banks.packed), banks.entries
    if waves is None or entries is None:
        return _of_classes("bias", rows, classes)
    columns = jnp.take(rows, _queries_of_columns(spec), axis=3).reshape(-1, rows.shape[-1])
    table = large_einsum("anc,rc->anr", waves, columns)
    operands = {"bias": table.reshape(-1, table.shape[-1])}
    if banks.class_words is None:
        return operands | _of_classes("entry", entries, classes)
    slots = SlotSpec(
        outer=spec.outer,
        layers=spec.layers,
        batch=spec.batch,
        kv_heads=spec.kv_heads,
        num_positions=entries.shape[-1],
        slots=spec.entry_slots,
    )
    (entry,) = launch(
        slots,
        {
            "class_map": banks.class_words.reshape(-1, banks.class_words.shape[-1]),
            "length": banks.packed.length.reshape(-1),
            "number": entries.reshape(-1, entries.shape[-1]),
            **of_layer,
        },
    )
    return operands | {"entry": entry}


def entry_slots(classes: Sequence[Packed]) -> tuple[int, ...]:
    """Slots of whole blocks of each class, by its number; of codes without classes of the bank."""
    slots = {packed.number: packed.blocks * layouts.BLOCK for packed in classes}
    return tuple(slots.get(number, 0) for number in range(1 + max(slots)))


def _queries_of_columns(spec: KernelSpec) -> np.ndarray:
    """The query of a KV head that each column of its teams belongs to; some are there twice."""
    width = spec.bias_columns
    column = np.arange(width)
    if width > SET:
        column = column % 2 * SET + column // 2
    column = np.minimum(column, spec.tuning.queries - 1)
    first = spec.tuning.queries * np.arange(spec.head_teams)[:, None]
    return np.minimum(first + column, spec.queries - 1).reshape(-1)


def _of_classes(
    name: str, x: Float[Array, "... S"] | Int32[Array, "... S"], classes: Sequence[Packed]
) -> dict[str, Array]:
    """Numbers of each class's slots, of whole blocks, by operand name."""
    found, first = {}, 0
    for packed in classes:
        own = x[..., first : first + packed.num_positions]
        more = packed.blocks * layouts.BLOCK - packed.num_positions
        padded = jnp.pad(own, [(0, 0)] * (own.ndim - 1) + [(0, more)])
        found[f"{packed.name}{name}"] = padded.reshape(-1, padded.shape[-1])
        first += packed.num_positions
    return found
