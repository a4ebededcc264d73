"""Tensors coded by sign dictionaries, and the products that attention needs of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Float, Int32, Shaped, UInt32
from vkq_jax.bits import log_scale, packed_products, packing, rotation
from vkq_jax.bits.exact_einsum import exact_einsum
from vkq_jax.codes.code_tables import ClassTables, SideTables, align
from vkq_jax.codes.normal_steps import NORMAL_STEPS
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor
from vkq_jax.codes.token_classes import ClassMap
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["DictionaryTensor", "hadamard_bits", "hadamard_dictionary"]


@frozen_pytree
class DictionaryTensor(QuantizedTensor):
    """A tensor whose tokens are signed sums of dictionary columns around a centre.

        x_hat[t] = c + C[id[t]] + a[t] D s[t],    s[t] in {-1, 1}^n

    for the tokens of a class, which share D [H, n]; classes differ in n. Without tables D holds
    Hadamard planes, [R, 2 R, 4 R, ...], and the centres are the tensor's own; with tables D and the
    codebook C are those of the model. Attention needs no decoded token (post-scaling):

        score[t] = q . c + q . C[id[t]] + a[t] (D^T q) . s[t]
        out      = c sum_t p[t] + C (mass of each id) + D (sum_t p[t] a[t] s[t])

    Elements saturate at 2^48 (2.8e14), whose squares can be summed, and scales at 6.0e4. A NaN or
    infinite element of a token makes the centres NaN, and so all values of the tokens of its head;
    without a centre of its own (`centres=0`) nothing carries the NaN: it counts as 0.

    Tokens lie in slots, class by class, see `ClassMap`.

    With `unit` all of these are in units w of the channels: x_hat is w times as large, channel by
    channel, scores take w q in the place of q, and `out` is times w.

    Attributes:
        packed: for each class, bits (1 for +1) of its slots' virtual channels.
        token_scale: for each class a, uint8 as `vkq_jax.bits.log_scale` defines it; None: 1.
        centre: c, one row; or, without a codebook, several rows that `centre_id` chooses from.
        centre_id: which centroid each slot has, bit fields of `id_bits`; None: there is one.
        unit: w, of each channel; None: 1.
        class_map: which slot holds which position; None: the bank has it.
        virtual: n of each class.
        head_dim: H.
        num_positions: V.
        num_slots: of all classes.
        id_bits: of a centroid's number, 0: there are no numbers.
        codebook, learned: whether centroids and dictionaries are those of the model's tables.
    """

    packed: tuple[UInt32[Array, "*lead _ _"], ...]
    token_scale: tuple[Shaped[Array, "*lead _"] | None, ...]
    centre: Float[Array, "*lead M H"]
    centre_id: UInt32[Array, "*lead W2"] | None
    unit: Float[Array, "*lead H"] | None = None
    class_map: ClassMap | None = None
    virtual: tuple[int, ...] = static_field(kw_only=True)
    head_dim: int = static_field(kw_only=True)
    num_positions: int = static_field(kw_only=True)
    num_slots: int = static_field(kw_only=True)
    id_bits: int = static_field(kw_only=True)
    codebook: bool = static_field(default=False, kw_only=True)
    learned: bool = static_field(default=False, kw_only=True)

    def check(self) -> None:
        """Raises ValueError where the words are none of its codes, or name no centre."""
        if len(self.packed) != len(self.virtual):
            raise ValueError(f"expected {len(self.virtual)} classes, got {len(self.packed)}")
        for words, virtual in zip(self.packed, self.virtual, strict=True):
            packing.check_words(words, 1, virtual)
        if self.centre_id is not None:
            packing.check_words(self.centre_id, self.id_bits, self.num_slots)
            if not self.codebook:
                self.check_ids(self.centre.shape[-2])

    def check_ids(self, count: int) -> None:
        """Raises ValueError where `centre_id` names another than one of `count` centroids."""
        if self.centre_id is None:
            return
        ids = packing.unpack(self.centre_id, self.id_bits, self.num_slots)
        if (ids >= count).any():
            raise ValueError(f"centre_id must be in [0, {count}), got {ids.max()}")

    def decoding(self) -> AffineTensor:
        """Raises NotImplementedError: the levels of classes are no affine codes of one width."""
        raise NotImplementedError(
            "DictionaryTensor is not affine in one code; use `scores`, `weighted_sum` or "
            "`dequantize()`"
        )

    def scores(
        self, query: Float[Array, "*lead Q H"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q S"]:
        """See `QuantizedTensor.scores`; S slots, in the order of `ClassMap`."""
        self._check_tables(tables)
        query = self._in_units(query)
        parts = []
        for number, packed, scale in self._classes():
            if not self.virtual[number]:
                parts.append(jnp.zeros((*query.shape[:-1], packed.shape[-2]), jnp.float32))
                continue
            folded = self._fold(query, number, tables)
            product = packed_products.sign_products(folded, packed)
            parts.append(product if scale is None else product * scale[..., None, :])
        total = jnp.concatenate(parts, axis=-1)
        common, centroids = self._centres(tables, query.ndim)
        if common is not None:
            total = total + exact_einsum("...qh,...mh->...qm", query, common)
        if centroids is not None:
            by_centroid = exact_einsum("...qh,...mh->...qm", query, centroids)
            total = total + jnp.take_along_axis(by_centroid, self._ids(total.shape), axis=-1)
        return total

    def weighted_sum(
        self, weights: Float[Array, "*lead Q S"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q H"]:
        """See `QuantizedTensor.weighted_sum`; weights of empty slots are 0."""
        self._check_tables(tables)
        total = jnp.zeros((*weights.shape[:-1], self.head_dim), jnp.float32)
        common, centroids = self._centres(tables, weights.ndim)
        if common is not None:
            mass = weights.sum(-1, keepdims=True)
            total = total + exact_einsum("...qm,...mh->...qh", mass, common)
        if centroids is not None:
            mass = _mass_by_id(weights, self._ids(weights.shape), centroids.shape[-2])
            total = total + exact_einsum("...qm,...mh->...qh", mass, centroids)
        stop = 0
        for number, packed, scale in self._classes():
            start, stop = stop, stop + packed.shape[-2]
            if not self.virtual[number]:
                continue
            part = weights[..., start:stop]
            part = part if scale is None else part * scale[..., None, :]
            product = packed_products.sign_sums(part, packed, self.virtual[number])
            total = total + self._unfold(product, number, tables)
        return self._in_units(total)

    def dequantize(
        self, tables: SideTables | None = None, class_map: ClassMap | None = None
    ) -> Float[Array, "*lead V H"]:
        """Float32 values in the order of positions.

        Args:
            tables: of one side, for the axes [K] before the last two; those it was coded with.
            class_map: the bank's, where the tensor has none of its own.
        """
        class_map = self.class_map if class_map is None else class_map
        if class_map is None:
            raise ValueError(
                "dequantize: keys and values of a bank share one order of their tokens, which the "
                "bank holds: expected its own, cache.visual[0].dequantize(cache.tables)"
            )
        self._check_tables(tables)
        parts = []
        for number, packed, scale in self._classes():
            signs = _signs(packed, self.virtual[number])
            part = self._unfold(signs, number, tables)
            parts.append(part if scale is None else part * scale[..., None])
        slots = jnp.concatenate(parts, axis=-2)
        common, centroids = self._centres(tables, slots.ndim)
        if common is not None:
            slots = slots + common
        if centroids is not None:
            centroids = jnp.broadcast_to(centroids, (*slots.shape[:-2], *centroids.shape[-2:]))
            ids = self._ids(slots.shape[:-1])[..., None]
            slots = slots + jnp.take_along_axis(centroids, ids, axis=-2)
        slots = self._in_units(slots)
        return jnp.take_along_axis(slots, class_map.slots_of_positions()[..., None], axis=-2)

    def num_elements(self) -> int:
        """Elements of [*lead, V, H]; slots that no token takes are not counted."""
        return math.prod(self.centre.shape[:-2]) * self.num_positions * self.head_dim

    def _classes(self) -> Iterator[tuple[int, Array, Array | None]]:
        """Number, bits and float32 scales of each class."""
        for number, (packed, scale) in enumerate(zip(self.packed, self.token_scale, strict=True)):
            yield number, packed, None if scale is None else log_scale.decode(scale)

    def _in_units(self, x: Float[Array, "*lead A H"]) -> Float[Array, "*lead A H"]:
        """W x."""
        return x if self.unit is None else x * self.unit.astype(jnp.float32)[..., None, :]

    def _centres(self, tables: SideTables | None, ndim: int) -> tuple[Array | None, Array | None]:
        """The row that all tokens share, and those that `centre_id` chooses from."""
        own = self.centre.astype(jnp.float32)
        if self.codebook:
            assert tables is not None
            assert tables.codebook is not None
            return own if own.shape[-2] else None, align(tables.codebook, ndim)
        if self.centre_id is not None:
            return None, own
        return own if own.shape[-2] else None, None

    def _ids(self, shape: tuple[int, ...]) -> Int32[Array, "..."]:
        """Centroid numbers of the slots, repeated over the axes of `shape` [*lead, *more, S]."""
        assert self.centre_id is not None
        ids = packing.unpack(self.centre_id, self.id_bits, self.num_slots)
        more = len(shape) - ids.ndim
        return jnp.broadcast_to(ids.reshape(*ids.shape[:-1], *[1] * more, ids.shape[-1]), shape)

    def _fold(self, query: Array, number: int, tables: SideTables | None) -> Array:
        """D^T q."""
        learned = self._learned(number, tables)
        if learned is None:
            matrix = jnp.asarray(hadamard_dictionary(self.head_dim, self.virtual[number]))
            return jnp.matmul(query, matrix, precision=jax.lax.Precision.HIGHEST)
        dictionary = align(learned.dictionary(), query.ndim)
        return exact_einsum("...qh,...hn->...qn", query, dictionary)

    def _unfold(self, x: Array, number: int, tables: SideTables | None) -> Array:
        """D x."""
        learned = self._learned(number, tables)
        if learned is None:
            matrix = jnp.asarray(hadamard_dictionary(self.head_dim, self.virtual[number]).T)
            return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)
        return exact_einsum("...qn,...hn->...qh", x, align(learned.dictionary(), x.ndim))

    def _learned(self, number: int, tables: SideTables | None) -> ClassTables | None:
        return tables.of_class(number) if self.learned and tables is not None else None

    def _check_tables(self, tables: SideTables | None) -> None:
        if (self.codebook or self.learned) and tables is None:
            raise ValueError(
                "these codes were made with the model's tables and cannot be read without them: "
                "pass the same `tables` (a cache has them, cache.tables)"
            )


@functools.cache
def hadamard_dictionary(head_dim: int, virtual: int) -> np.ndarray:
    """[R, 2 R, 4 R, ...], [H, n]: plane j is bit j of a uniform grid in the rotated channels.

    R is symmetric, so that rows and columns may be read either way. Where some channels have one
    bit more than others, the last plane holds those channels alone, and each channel has its own
    step.
    """
    bits = hadamard_bits(head_dim, virtual)
    step = np.asarray(NORMAL_STEPS, np.float32)[bits]
    empty = np.zeros((head_dim, 0), np.float32)
    matrix = rotation.hadamard(head_dim) * (step / (step[0] or 1.0))
    planes = [2.0**j * matrix[:, bits > j] for j in range(bits[0])]
    return np.concatenate([empty, *planes], axis=1).astype(np.float32)


def hadamard_bits(head_dim: int, virtual: int) -> np.ndarray:
    """Bits of each rotated channel, `virtual` in all: the first ones may have one more."""
    whole, rest = divmod(virtual, head_dim)
    return whole + (np.arange(head_dim) < rest).astype(np.int32)


def _signs(packed: UInt32[Array, "*lead C W"], virtual: int) -> Float[Array, "*lead C n"]:
    return (2 * packing.unpack(packed, 1, virtual) - 1).astype(jnp.float32)


def _mass_by_id(
    weights: Float[Array, "*lead Q S"], ids: Int32[Array, "*lead Q S"], count: int
) -> Float[Array, "*lead Q M"]:
    """Sum of the weights of each centroid."""
    *lead, slots = weights.shape
    rows = math.prod(lead)  # no -1: there may be no slots
    flat, flat_ids = weights.reshape(rows, slots), ids.reshape(rows, slots)
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    mass = jnp.zeros((rows, count), jnp.float32).at[row, flat_ids].add(flat)
    return mass.reshape(*lead, count)
