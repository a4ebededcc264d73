"""Parameters from stored tensors and back: matching by name, one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any

import jax
import numpy as np
from flax import nnx

from models.checkpoint import Checkpoint

__all__ = ["Layout", "Source", "check_weights", "read_weights", "to_stored"]

_FLOATS = ("F64", "F32", "F16", "BF16")

type ParameterPath = tuple[Any, ...]


class Layout(Enum):
    """How a stored tensor relates to the parameter."""

    SAME = auto()
    TRANSPOSED = auto()
    """Stored [out, in], held [in, out]."""
    PATCHES = auto()
    """Stored as a convolution [out, channels, rows, columns], held [channels*rows*columns, out]."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Name and layout of what a parameter is made of; `{}` in the name is the layer's number."""

    name: str
    layout: Layout = Layout.SAME

    @property
    def stacked(self) -> bool:
        """Whether the parameter is a stack over layers."""
        return "{}" in self.name

    def names(self, parameter: Any) -> list[str]:
        """The names of the stored tensors, layer by layer."""
        count = parameter.shape[0] if self.stacked else 1
        return [self.name.format(layer) for layer in range(count)]

    def stored_size(self, parameter: Any) -> tuple[int, ...]:
        """The stored shape, a convolution's [out, channels*rows*columns]."""
        shape = parameter.shape[1:] if self.stacked else parameter.shape
        return shape if self.layout is Layout.SAME else shape[::-1]


def check_weights(
    params: nnx.State,
    source: Callable[[ParameterPath], Source],
    keys: Mapping[str, str],
    checkpoint: Checkpoint,
    is_unused: Callable[[str], bool],
) -> list[str]:
    """Everything that is missing, unexpected, or of a wrong shape or dtype, one line each.

    Args:
        params: parameters or their `jax.ShapeDtypeStruct`s.
        source: where the parameter at a path comes from.
        keys: the checkpoint's key of each name that it has.
        checkpoint: the stored tensors; only their headers are looked at.
        is_unused: tells the names that are no parameters but may be there.
    """
    problems, expected = [], set()
    for path, parameter in nnx.to_flat_state(params):
        origin = source(path)
        size = origin.stored_size(parameter)
        for name in origin.names(parameter):
            expected.add(name)
            if name not in keys:
                problems.append(f"missing: {name}")
                continue
            info = checkpoint.tensors[keys[name]]
            shape = info.shape
            if origin.layout is Layout.PATCHES and len(shape) == 4:
                shape = (shape[0], shape[1] * shape[2] * shape[3])
            if shape != size:
                problems.append(f"wrong shape: {keys[name]}: expected {size}, got {info.shape}")
            if info.dtype not in _FLOATS:
                problems.append(
                    f"wrong dtype: {keys[name]}: expected one of {', '.join(_FLOATS)}, "
                    f"got {info.dtype}"
                )
    known = {key for name, key in keys.items() if name in expected or is_unused(name)}
    return problems + [f"unexpected: {key}" for key in checkpoint.tensors if key not in known]


def read_weights(
    params: nnx.State,
    source: Callable[[ParameterPath], Source],
    keys: Mapping[str, str],
    checkpoint: Checkpoint,
) -> nnx.State:
    """Parameters on the default device, of the shapes and dtypes that `params` states.

    On the host there is at most one parameter (a stack over layers) and one stored tensor at a
    time.
    """
    return nnx.from_flat_state(
        (path, parameter.replace(_read(parameter, source(path), keys, checkpoint)))
        for path, parameter in nnx.to_flat_state(params)
    )


def _read(
    parameter: Any, origin: Source, keys: Mapping[str, str], checkpoint: Checkpoint
) -> jax.Array:
    stack: np.ndarray = np.empty(parameter.shape, parameter.dtype)
    parts: np.ndarray = stack if origin.stacked else stack[None]
    for part, name in zip(parts, origin.names(parameter), strict=True):
        tensor = checkpoint.read(keys[name])
        if origin.layout is not Layout.SAME:
            tensor = tensor.reshape(tensor.shape[0], -1).T
        # Transposes and casts in one pass, without another array.
        np.copyto(part, tensor, casting="unsafe")
    # The transfer ends before the host's copy is dropped and the next one made.
    return jax.block_until_ready(jax.device_put(stack))


def to_stored(
    params: nnx.State, source: Callable[[ParameterPath], Source], num_channels: int = 3
) -> dict[str, np.ndarray]:
    """Every stored tensor by name: the inverse of `read_weights`."""
    return dict(
        itertools.chain.from_iterable(
            _unstack(parameter, source(path), num_channels)
            for path, parameter in nnx.to_flat_state(params)
        )
    )


def _unstack(parameter: Any, origin: Source, num_channels: int) -> list[tuple[str, np.ndarray]]:
    value = np.asarray(parameter[...])
    parts = value if origin.stacked else value[None]
    stored = []
    for part, name in zip(parts, origin.names(value), strict=True):
        tensor = part if origin.layout is Layout.SAME else part.T
        if origin.layout is Layout.PATCHES:
            side = round((tensor.shape[1] / num_channels) ** 0.5)
            tensor = tensor.reshape(-1, num_channels, side, side)
        # The file format takes an array's memory as it lies, whatever its strides.
        stored.append((name, np.ascontiguousarray(tensor)))
    return stored
