"""Attention over bf16 and fp8 caches by others, which the fused kernel is compared with.

Each baseline makes keys and values of its own for several layers, times one decode step over them
and frees them. One that cannot run here is left out, with the reason.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vkq_apps.bench.timing import LayerTime, seconds_of_calls, time_per_layer
from vkq_apps.terminal.console import log
from vkq_apps.terminal.errors import describe

__all__ = [
    "BASELINES",
    "BF16_BASELINES",
    "FP8_BASELINES",
    "DecodeShape",
    "Measured",
    "measure_baselines",
    "torch_version",
]


@dataclasses.dataclass(frozen=True)
class DecodeShape:
    """One decode step: one query position a sequence, `queries` query heads a KV head."""

    batch: int
    kv_heads: int
    queries: int
    positions: int
    head_dim: int

    @property
    def layers(self) -> int:
        """Layers of bf16 keys and values in about 4 GB, which no cache holds; 1 to 16."""
        layer = 2 * 2 * self.batch * self.kv_heads * self.positions * self.head_dim
        return max(1, min(16, round(4e9 / layer)))

    def query(self) -> jax.Array:
        """A bf16 query in JAX's layout."""
        shape = (self.batch, 1, self.kv_heads * self.queries, self.head_dim)
        return jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)

    def layer(self, number: int) -> tuple[jax.Array, jax.Array]:
        """Random bf16 keys and values in JAX's layout."""
        shape = (self.batch, self.positions, self.kv_heads, self.head_dim)
        key, value = jax.random.split(jax.random.key(number + 1))
        normal = functools.partial(jax.random.normal, shape=shape, dtype=jnp.bfloat16)
        return normal(key), normal(value)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Times of one step by who took it, and of those left out the reason."""

    times: dict[str, LayerTime]
    left_out: dict[str, str]

    def microseconds(self, names: Sequence[str]) -> dict[str, float]:
        """By the device where it is known, else by the clock."""
        return {name: 1e6 * self.times[name].best for name in names if name in self.times}

    def wall_microseconds(self, names: Sequence[str]) -> dict[str, float]:
        """By the clock, what the host needs for launches included."""
        return {name: 1e6 * self.times[name].wall for name in names if name in self.times}

    def strongest(self) -> str | None:
        """The fastest over bf16; None where there is none."""
        bf16 = self.microseconds(BF16_BASELINES)
        return min(bf16, key=bf16.__getitem__, default=None)


def jax_attention(shape: DecodeShape, implementation: Literal["cudnn", "xla"]) -> LayerTime:
    """`jax.nn.dot_product_attention` over bf16."""

    def step(query, layer):
        return jax.nn.dot_product_attention(query, *layer, implementation=implementation)

    return time_per_layer(step, shape.query(), [shape.layer(i) for i in range(shape.layers)])


def to_fp8(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys or values as float8_e4m3fn, and a float32 scale for each sequence and KV head."""
    largest = jnp.abs(x).max((1, 3), keepdims=True).astype(jnp.float32)
    scale = largest / float(jnp.finfo(jnp.float8_e4m3fn).max)
    return (x / scale).astype(jnp.float8_e4m3fn), scale


def fp8_attention(query: jax.Array, layer: Any) -> jax.Array:
    """Attention over codes of `to_fp8`, raised to bf16 inside XLA's attention.

    Scales are per head, so that they leave the sums: the query takes the keys', the output the
    values'. XLA decides whether the raised values ever lie in memory.
    """
    (key, key_scale), (value, value_scale) = layer
    queries = query.shape[2] // key.shape[2]
    key_scale, value_scale = (jnp.repeat(x, queries, axis=2) for x in (key_scale, value_scale))
    output = jax.nn.dot_product_attention(
        (query * key_scale).astype(query.dtype),
        key.astype(query.dtype),
        value.astype(query.dtype),
        implementation="xla",
    )
    return (output * value_scale).astype(query.dtype)


def xla_fp8(shape: DecodeShape) -> LayerTime:
    """`fp8_attention`: the fp8 cache that plain JAX gives, not a kernel written for fp8.

    JAX's public API has none of those; one would read half the bytes of bf16.
    """
    code = jax.jit(lambda layer: tuple(to_fp8(x) for x in layer))
    layers = [code(shape.layer(i)) for i in range(shape.layers)]
    return time_per_layer(fp8_attention, shape.query(), layers)


def torch_attention(shape: DecodeShape) -> LayerTime:
    """PyTorch's `scaled_dot_product_attention` over bf16, by the backend that it chooses."""
    # By its name, so that neither the type checker nor tests/test_layers.py, which holds that no
    # package needs torch, sees an import: it is no dependency, only measured where it is installed.
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise ModuleNotFoundError("PyTorch sees no GPU")
    try:
        with torch.inference_mode():
            return _time_torch(torch, shape)
    finally:
        torch.cuda.empty_cache()


def _time_torch(torch: Any, shape: DecodeShape, repeats: int = 7) -> LayerTime:
    """Median times of a step: by the clock as Python calls it, by CUDA's events in a graph.

    A replayed graph leaves out the host. The gaps between its kernels count, which JAX's time on
    the device leaves out.
    """

    def random(heads: int, positions: int) -> Any:
        size = (shape.batch, heads, positions, shape.head_dim)
        return torch.randn(size, dtype=torch.bfloat16, device="cuda")

    query = random(shape.kv_heads * shape.queries, 1)
    keys, values = (
        [random(shape.kv_heads, shape.positions) for _ in range(shape.layers)] for _ in range(2)
    )
    attend = functools.partial(
        torch.nn.functional.scaled_dot_product_attention, enable_gqa=shape.queries > 1
    )

    def chain() -> list[Any]:
        return [attend(query, key, value) for key, value in zip(keys, values, strict=True)]

    def wait(_: Any) -> None:
        torch.cuda.synchronize()

    wall = statistics.median(seconds_of_calls(chain, repeats=repeats, wait=wait))
    graph = torch.cuda.CUDAGraph()
    # JAX's threads may call CUDA meanwhile, which a capture of the default mode does not survive.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = chain()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / repeats)
    del outputs  # lay in the graph's memory until here
    return LayerTime(wall / shape.layers, statistics.median(times) / shape.layers)


TIMED: dict[str, Callable[[DecodeShape], LayerTime]] = {
    "cudnn": functools.partial(jax_attention, implementation="cudnn"),
    "xla": functools.partial(jax_attention, implementation="xla"),
    "torch": torch_attention,
    "xla_fp8": xla_fp8,
}
BASELINES = tuple(TIMED)
BF16_BASELINES, FP8_BASELINES = ("cudnn", "xla", "torch"), ("xla_fp8",)


def torch_version() -> str | None:
    """The installed PyTorch's; None where there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def measure_baselines(shape: DecodeShape, names: tuple[str, ...] = BASELINES) -> Measured:
    """Times of these baselines, one after the other."""
    measured = Measured({}, {})
    for name in names:
        try:
            measured.times[name] = TIMED[name](shape)
        except Exception as error:
            reason = str(error) if isinstance(error, ImportError) else describe(error)
            measured.left_out[name] = reason
            log.print(f"{name} is left out: {reason}", soft_wrap=True)
    return measured
