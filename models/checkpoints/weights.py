"""Parameters from stored tensors and back: matching by name, one tensor in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from models.checkpoints.folder import Checkpoint
from models.checkpoints.sources import Index, Size, Source
from vkq_jax.messages import show_name
from vkq_jax.sharding.hosts import array_from_shards

__all__ = [
    "FLOATS",
    "Problem",
    "all_finite",
    "check_sizes",
    "check_weights",
    "put",
    "read_weights",
    "to_stored",
]

FLOATS = ("F64", "F32", "F16", "BF16")

type ParameterPath = tuple[Any, ...]
type ShardingOf = Callable[[ParameterPath], jax.sharding.Sharding]


class Problem(NamedTuple):
    """Why a stored tensor does not fit."""

    kind: str
    name: str
    detail: str = ""


def check_sizes(
    sizes: Iterable[Size], keys: Mapping[str, str], checkpoint: Checkpoint
) -> list[Problem]:
    """The settings that the files contradict, before anything is made in their size.

    Tensors that the files lack are left to `check_weights`.
    """
    problems = []
    for setting, value, name, axis in sizes:
        if axis is None:
            layers = re.compile(re.escape(name) + "([0-9]{1,9})[.]")
            numbers = [int(match[1]) for match in map(layers.match, keys) if match]
            stored = max(numbers, default=-1) + 1
            if 0 < stored < value:
                problems.append(Problem("wrong size", f"{setting}={value}", f"stored: {stored}"))
        elif name in keys:
            shape = checkpoint.tensors[keys[name]].shape
            if not -len(shape) <= axis < len(shape) or shape[axis] != value:
                detail = f"{keys[name]} has shape {shape}"
                problems.append(Problem("wrong size", f"{setting}={value}", detail))
    return problems


def check_weights(
    params: nnx.State,
    source: Callable[[ParameterPath], Source],
    keys: Mapping[str, str],
    checkpoint: Checkpoint,
    is_unused: Callable[[str], bool],
) -> list[Problem]:
    """Everything that is missing, unexpected, or of a wrong shape or dtype.

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
        size = origin.stored_shape(parameter)
        for name in origin.names(parameter):
            expected.add(name)
            if name not in keys:
                problems.append(Problem("missing", name))
                continue
            info = checkpoint.tensors[keys[name]]
            if info.shape != size:
                detail = f"expected {size}, got {info.shape}"
                problems.append(Problem("wrong shape", keys[name], detail))
            if info.dtype not in FLOATS:
                detail = f"expected {', '.join(FLOATS)}, got {info.dtype}"
                problems.append(Problem("wrong dtype", keys[name], detail))
    known = {key for name, key in keys.items() if name in expected or is_unused(name)}
    return problems + [Problem("unexpected", key) for key in checkpoint.tensors if key not in known]


def read_weights(
    params: nnx.State,
    source: Callable[[ParameterPath], Source],
    keys: Mapping[str, str],
    checkpoint: Checkpoint,
    sharding_of: ShardingOf | None = None,
) -> nnx.State:
    """Parameters of the shapes and dtypes that `params` states.

    On the host there is at most one shard of a parameter (a stack over layers) at a time, and of
    the stored tensors one slice a thread; each is looked through for NaN and infinity while it is
    there. Shards of other hosts are not read.

    Args:
        params: `jax.ShapeDtypeStruct`s.
        source: where the parameter at a path comes from.
        keys: the checkpoint's key of each name that it has.
        checkpoint: the stored tensors.
        sharding_of: how the parameter at a path lies on devices; None: all on the default one.

    Raises:
        ValueError: a value that is not finite, or not once it is cast; the tensor is named. Or a
            file that was written to meanwhile.
    """

    def read(path: ParameterPath, parameter: Any, threads: Executor) -> jax.Array:
        def part(own: Index) -> np.ndarray:
            return _read(parameter, own, source(path), keys, checkpoint, threads)

        if sharding_of is None:
            return put(part(tuple(slice(0, size) for size in parameter.shape)))
        return array_from_shards(parameter.shape, sharding_of(path), part)

    with ThreadPoolExecutor(_THREADS) as threads:
        state = nnx.from_flat_state(
            (path, parameter.replace(read(path, parameter, threads)))
            for path, parameter in nnx.to_flat_state(params)
        )
    checkpoint.check_unchanged()
    return state


_THREADS = 8


def put(values: np.ndarray) -> jax.Array:
    """Values on the default device, once they are there: their own memory may go then.

    An accelerator transposes much faster than the host, for a program compiled for each shape.
    """
    if jax.default_backend() != "cpu" and not values.flags.c_contiguous:
        return jax.block_until_ready(_swapped(jax.device_put(values.swapaxes(-1, -2))))
    return jax.block_until_ready(jax.device_put(values))


@jax.jit
def _swapped(x: jax.Array) -> jax.Array:
    return x.swapaxes(-1, -2)


def _read(
    parameter: Any,
    own: Index,
    origin: Source,
    keys: Mapping[str, str],
    checkpoint: Checkpoint,
    threads: Executor,
) -> np.ndarray:
    """A part of a parameter, from the slices of the stored tensors that it lies in."""
    stack = origin.empty([s.stop - s.start for s in own], parameter.dtype)
    index = origin.stored_index(own)
    if any(s.start == s.stop for s in index):  # nothing but padding
        stack[...] = 0
        return stack
    parts = origin.parts(stack)

    def fill(number: int, name: str) -> None:
        tensor = origin.to_parameter(checkpoint.read(keys[name], *index))
        part = parts[number, ...]  # a view, of a single number, too
        if origin.rows is not None:
            part[len(tensor) :] = 0
            part = part[: len(tensor)]
        _copy_checked(keys[name], tensor, part, infinite=origin.infinite)

    names = origin.names(parameter, own)
    for _ in threads.map(fill, range(len(names)), names):  # raises what a thread does
        pass
    return stack


def _copy_checked(key: str, tensor: np.ndarray, part: np.ndarray, *, infinite: bool) -> None:
    """Copies a stored tensor, cast in the same pass; `infinite`: infinity is a value like others.

    Raises:
        ValueError: a value that is not finite, or not once it is cast.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(part, tensor, casting="unsafe")
    if infinite and not np.isnan(part).any():
        return
    if not all_finite(part):
        if all_finite(tensor):
            raise ValueError(
                f"{show_name(key)} has values too large for {part.dtype}: load with another dtype"
            )
        raise ValueError(f"{show_name(key)} has NaN or infinite values: get the file anew")


_FINITE_BLOCK = 2**16  # elements, whose copy stays in the processor's cache


def all_finite(tensor: np.ndarray) -> bool:
    """Whether no element is NaN or infinite, whatever the float type, at the speed of memory."""
    # The exponent's bits, all set in NaN and infinity only: integers compare faster than bfloat16.
    info = ml_dtypes.finfo(tensor.dtype)
    word = np.dtype(f"u{tensor.dtype.itemsize}")
    exponent = word.type(((1 << info.nexp) - 1) << info.nmant)
    magnitude = word.type((1 << (8 * word.itemsize - 1)) - 1)
    bits = np.ravel(tensor, order="K").view(word)
    blocks = (bits[start : start + _FINITE_BLOCK] for start in range(0, bits.size, _FINITE_BLOCK))
    return all((block & magnitude).max() < exponent for block in blocks)


def to_stored(
    params: nnx.State, source: Callable[[ParameterPath], Source]
) -> dict[str, np.ndarray]:
    """Every stored tensor by name: the inverse of `read_weights`."""
    shared: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for path, parameter in nnx.to_flat_state(params):
        origin, value = source(path), np.asarray(parameter[...])
        place = (0, 0) if origin.rows is None else (origin.rows.axis, origin.rows.start)
        for part, name in zip(origin.parts(value), origin.names(value), strict=True):
            shared.setdefault(name, {})[place] = origin.to_tensor(part)
    # The file format takes an array's memory as it lies, whatever its strides.
    return {name: np.asarray(_whole(parts), order="C") for name, parts in shared.items()}


def _whole(parts: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """A stored tensor from its parts by their axis and first row; one part may be a scalar."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return np.concatenate([parts[place] for place in sorted(parts)], axis=min(parts)[0])
