"""No quantization: the visual bank stays in the model's dtype."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.bits.exact_einsum import split_einsum
from vkq_jax.codes.code_tables import SideTables
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor, Quantizer
from vkq_jax.pytree import frozen_pytree

__all__ = ["Dense", "DenseTensor"]


@dataclasses.dataclass(frozen=True)
class Dense(Quantizer):
    """Settings of the tensor that is stored as it is: the "none" preset, and the baseline.

    Attributes:
        keeps_attention: keys keep the attention that a prompt's last queries pay to them, for codes
            that are made from this tensor later.
    """

    keeps_attention: bool = False

    def quantize(self, x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"]) -> DenseTensor:
        """Stores `x`, zero where it is not valid."""
        return DenseTensor(jnp.where(valid[..., None], x, 0))


@frozen_pytree
class DenseTensor(QuantizedTensor):
    """A tensor in the dtype it came in.

        x_hat = values

    NaN and infinite values stay what they are.

    Attributes:
        values: floating; 0 at positions that are not valid.
        attention: of keys, see `Dense.keeps_attention`; None: not kept.
    """

    values: Float[Array, "*lead V H"]
    attention: Float[Array, "*lead V"] | None = None

    def decoding(self) -> AffineTensor:
        """Raises NotImplementedError: there are no codes."""
        raise NotImplementedError(
            "DenseTensor has no packed codes; use its `values`, or `dequantize()` for float32"
        )

    def dequantize(self) -> Float[Array, "*lead V H"]:
        """`values` in float32."""
        return self.values.astype(jnp.float32)

    def scores(
        self, query: Float[Array, "*lead Q H"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q V"]:
        """See `QuantizedTensor.scores`."""
        return split_einsum("...qh,...vh->...qv", query, self.values)

    def weighted_sum(
        self, weights: Float[Array, "*lead Q V"], tables: SideTables | None = None
    ) -> Float[Array, "*lead Q H"]:
        """See `QuantizedTensor.weighted_sum`."""
        return split_einsum("...qv,...vh->...qh", weights, self.values)
