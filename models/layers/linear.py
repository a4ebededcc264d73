"""Linear layers and embedding tables with one place for dtypes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vkq_jax.array_types import Array, Float, Int32

__all__ = ["Embedding", "Maker"]

_STANDARD_DEVIATION = 0.02


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes layers that share a stream of random numbers, dtypes and devices.

    Attributes:
        rngs: where random parameters come from.
        dtype: of the computation.
        param_dtype: of the parameters.
        mesh: devices that the layers are split over; None: one.
        clipped: linear layers are `ClippedLinear`s.
    """

    rngs: nnx.Rngs
    dtype: DTypeLike
    param_dtype: DTypeLike
    mesh: Mesh | None = None
    clipped: bool = False

    @classmethod
    def create(
        cls,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
        *,
        mesh: Mesh | None = None,
    ) -> "Maker":
        """A maker whose parameters are of `param_dtype`, `dtype` by default."""
        return cls(rngs, dtype, dtype if param_dtype is None else param_dtype, mesh)

    def with_rngs(self, rngs: nnx.Rngs) -> "Maker":
        """A maker of the same dtypes with another stream of random numbers."""
        return dataclasses.replace(self, rngs=rngs)

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nnx.Linear:
        """x @ kernel + bias, kernel [inputs, outputs]."""
        return (ClippedLinear if self.clipped else nnx.Linear)(
            inputs,
            outputs,
            use_bias=bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def normal(self, *shape: int) -> nnx.Param:
        """A parameter of small random numbers."""
        draw = nnx.initializers.normal(_STANDARD_DEVIATION)
        return nnx.Param(draw(self.rngs.params(), shape, self.param_dtype))

    def embedding(self, rows: int, width: int, *, multiple: int = 1) -> "Embedding":
        """A table of `rows` vectors, and padding after them up to a multiple of `multiple`."""
        return Embedding(self.normal(-(-rows // multiple) * multiple, width), rows, self.dtype)


class ClippedLinear(nnx.Linear):
    """A linear layer whose inputs and outputs are cut to ranges that files hold with its weight."""

    def __init__(self, inputs: int, outputs: int, *, param_dtype: DTypeLike, **options: Any):
        """Arguments of `nnx.Linear`; ranges without ends."""
        super().__init__(inputs, outputs, param_dtype=param_dtype, **options)
        self.input_min, self.output_min = (_scalar(-jnp.inf, param_dtype) for _ in range(2))
        self.input_max, self.output_max = (_scalar(jnp.inf, param_dtype) for _ in range(2))

    def __call__(
        self, inputs: Float[Array, "*lead inputs"], out_sharding: Any = None
    ) -> Float[Array, "*lead outputs"]:
        """See `nnx.Linear`."""
        inputs = _cut(inputs, self.input_min, self.input_max)
        return _cut(super().__call__(inputs, out_sharding), self.output_min, self.output_max)


def _scalar(value: float, dtype: DTypeLike) -> nnx.Param:
    return nnx.Param(jnp.asarray(value, dtype))


def _cut(x: Float[Array, "*shape"], low: nnx.Param, high: nnx.Param) -> Float[Array, "*shape"]:
    return jnp.clip(x, low[...].astype(x.dtype), high[...].astype(x.dtype))


class Embedding(nnx.Module):
    """A table of vectors: the first `rows` of `weight`, after which there may be padding."""

    def __init__(self, weight: nnx.Param, rows: int, dtype: DTypeLike):
        """The table, read in `dtype`."""
        self.weight, self.rows, self.dtype = weight, rows, jnp.dtype(dtype)

    def __call__(self, ids: Int32[Array, "*shape"]) -> Float[Array, "*shape width"]:
        """Rows of the table in the compute dtype; an id outside the table gets the nearest row."""
        ids = jnp.minimum(ids, self.rows - 1)
        return jnp.take(self.weight[...], ids, axis=0, mode="clip").astype(self.dtype)

    def table(self) -> Float[Array, "rows width"]:
        """The whole table in the compute dtype."""
        return self.weight[...].astype(self.dtype)
