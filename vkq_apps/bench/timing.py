"""Timing on a device."""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = [
    "LayerTime",
    "bandwidth",
    "chain_of_layers",
    "kernels_of",
    "recorded",
    "seconds_of_calls",
    "seconds_of_kernels",
    "step_figures",
    "time_of_calls",
    "time_per_layer",
]


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """Seconds of one step.

    Attributes:
        wall: by the clock, what the host needs to launch it included.
        device: of its kernels by the device's own records; None where there are none.
    """

    wall: float
    device: float | None

    @property
    def best(self) -> float:
        """Seconds by the device where that is known, else by the clock."""
        return self.wall if self.device is None else self.device

    @property
    def timed_by(self) -> str:
        """The clock of `best`: "device" or "clock"."""
        return "clock" if self.device is None else "device"


def step_figures(batch: int, seconds: Sequence[float]) -> dict[str, Any]:
    """A row's figures of a decode step of `batch` sequences, which took these times."""
    step = statistics.median(seconds)
    return {
        "step_ms": 1e3 * step,
        "step_ms_range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "tokens_per_second": batch / step,
    }


def time_per_layer(
    step: Callable[..., jax.Array], query: jax.Array, layers: Sequence[Any], *, repeats: int = 7
) -> LayerTime:
    """Median times of `step(query, layer)` over a `chain_of_layers`."""
    chain = chain_of_layers(step)
    return time_of_calls(chain, query, layers, steps=len(layers), repeats=repeats)


def chain_of_layers(step: Callable[..., jax.Array]) -> Any:
    """`step(query, layer)` for each of a list of layers, one after the other, in one jit.

    Layers have buffers of their own, so that no cache of the device holds them, and a barrier
    orders each step after the one before. Each repeat runs the chain several times before it
    waits, so that Python is not measured; what the host needs for a launch may be, and of short
    kernels it can be most of the wall time.
    """

    @jax.jit
    def chain(query, layers):
        outputs = []
        for layer in layers:
            outputs.append(step(query, layer))
            query, outputs[-1] = jax.lax.optimization_barrier((query, outputs[-1]))
        return outputs

    return chain


def time_of_calls(
    function: Callable[..., Any], *arguments: Any, steps: int = 1, repeats: int = 7
) -> LayerTime:
    """Median times of one of the equal steps that a compiled call takes."""
    wall = statistics.median(seconds_of_calls(function, *arguments, repeats=repeats))
    device = _seconds_on_device(lambda: function(*arguments), calls=repeats)
    return LayerTime(wall / steps, device and device / steps)


def _seconds_on_device(function: Callable[[], Any], calls: int) -> float | None:
    """Seconds that a call's kernels take on the first GPU; None where the profiler sees none."""
    if jax.default_backend() != "gpu":
        return None

    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(function())

    return seconds_of_kernels(recorded(run)) / calls or None


def recorded(run: Callable[[], Any]) -> Iterable[Any]:
    """The planes of the profiler's record of `run`, which waits for what it starts."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(path)).planes


def seconds_of_kernels(planes: Iterable[Any]) -> float:
    """Seconds of all that ran in the first GPU's streams, see `kernels_of`."""
    return 1e-9 * sum(event.duration_ns for event in kernels_of(planes))


def kernels_of(planes: Iterable[Any]) -> Iterator[Any]:
    """All that ran in the first GPU's streams, by the planes of a profiler's record.

    Other lines of the GPU's plane group the same kernels by module or operation: they do not count.
    """
    for plane in planes:
        if plane.name.startswith("/device:GPU:0"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    yield from line.events


def seconds_of_calls(
    function: Callable[..., Any],
    *arguments: Any,
    repeats: int = 7,
    at_least: float = 0.03,
    wait: Callable[[Any], Any] = jax.block_until_ready,
) -> list[float]:
    """Seconds of one call, one for each repeat, warm; `wait` ends when its result is there.

    A repeat waits once, after as many calls as take `at_least` seconds: what Python does between
    calls hides behind the device's work, where there is enough of it.
    """
    wait(function(*arguments))
    start = time.perf_counter()
    wait(function(*arguments))
    once = time.perf_counter() - start
    calls = max(2, min(50, int(at_least / once)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = function(*arguments)  # the one before is freed: outputs do not pile up
        wait(result)
        times.append((time.perf_counter() - start) / calls)
    return times


def bandwidth() -> float:
    """Bytes a second that a large copy reads and writes: the ceiling."""
    num_bytes = 2**30 if jax.default_backend() == "gpu" else 2**26
    x = jnp.ones(num_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / statistics.median(seconds_of_calls(copy, x))
