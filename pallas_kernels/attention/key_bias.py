"""The share of a key bias in the scores of a packed bank: what a launch adds to them.

Where the bias knows a bound of its positions (`vkq_jax.KeyBias.with_waves`), the share is looked up
in the launch: a table [axes * N, columns] has the share of each position on each axis, for all
queries of the launch, and each token a word with the numbers of its positions. Nothing of the size
[B, K, Q, S] is made. Else XLA computes the share of each slot.

A column of the table is a query of a team, so that a lane finds those of its queries beside each
other: of two sets queries t and t + 4, which are columns 2t and 2t + 1 of the team's eight.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.kernel_spec import SET, KernelSpec, Packed
from pallas_kernels.layout import layouts
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention import bias_scores
from vkq_jax.cache import VisualBank
from vkq_jax.exact_einsum import exact_einsum
from vkq_jax.key_bias import KeyBias
from vkq_jax.pytree import frozen_pytree

__all__ = ["BiasShare", "bias_operands", "bias_share"]


@frozen_pytree
class BiasShare:
    """The share of a key bias in the scores of one layer of a packed bank, natural, float32.

    Attributes:
        rows: the share in each slot; with waves the factors of each query that these have, see
            `vkq_jax.KeyBias.coefficients`.
        waves: of positions below a bound. entries: of the slots; for one head or for each.
    """

    rows: Float[Array, "B K Q S"]
    waves: Float[Array, "A N S"] | None = None
    entries: Int32[Array, "B k slots"] | None = None


def bias_share(q: Float[Array, "B K Q H"], bank: VisualBank, bias: KeyBias) -> BiasShare:
    """The share in the scores of one layer of a bank, for queries times `logits_scale`.

    Raises:
        ValueError: the bank does not know the positions of its tokens.
    """
    if bias.waves is None or bank.position is None:
        return BiasShare(bias_scores(q, bank, bias))
    entries = bank.tokens_in_slots(bias.entries(bank.position))
    return BiasShare(bias.coefficients(q), bias.waves, entries)


def bias_operands(
    spec: KernelSpec,
    rows: Float[Array, "Z B K Q S"],
    waves: Float[Array, "A N S"] | None,
    entries: Int32[Array, "Z B k slots"] | None,
    classes: Sequence[Packed],
) -> dict[str, Array]:
    """A `BiasShare` with an axis Z in front, by operand name.

    The share of each class's slots [rows, slots of whole blocks]; or bias [axes * N, columns] and
    the words of each class's slots [heads or sequences, slots of whole blocks].
    """
    if waves is None or entries is None:
        return _of_classes("bias", rows, classes)
    columns = jnp.take(rows, _queries_of_columns(spec), axis=3).reshape(-1, rows.shape[-1])
    table = exact_einsum("anc,rc->anr", waves, columns)
    return {"bias": table.reshape(-1, table.shape[-1])} | _of_classes("entry", entries, classes)


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
