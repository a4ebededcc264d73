"""Arrays put on a model's mesh.

With `mesh=None` each function gives back what it gets: one device needs none of it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

import pallas_kernels
from models.sharding.axes import DATA, GROUP, KV_HEADS, MODEL
from models.sharding.split_backend import SplitBackend
from vkq_jax.array_types import Array, Float
from vkq_jax.attention.backend import Backend
from vkq_jax.cache.any_cache import map_parts
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.split_tensor import SplitTensor
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.settings.layer_groups import LayerGroups, Quant
from vkq_jax.sharding.bank_parts import join_banks, parts_to_kernel_layout, split_bank
from vkq_jax.sharding.specs import CacheAxes, cache_specs

__all__ = [
    "attention_axes",
    "cache_axes",
    "cache_shardings",
    "data_axis",
    "model_parts",
    "place",
    "place_cache",
    "place_logits",
    "place_sequences",
    "place_shared",
    "place_tables",
    "sequence_parts",
    "split_attention",
    "table_shardings",
]


def data_axis(mesh: Mesh, batch: int) -> str | None:
    """The axis that `batch` sequences are split over; None where it does not divide them."""
    return DATA if batch % mesh.shape[DATA] == 0 else None


def sequence_parts(mesh: Mesh | None) -> int:
    """Batches of a multiple of this leave no device idle and no key on two of them."""
    return 1 if mesh is None else mesh.shape[DATA] * mesh.shape[GROUP]


def model_parts(mesh: Mesh | None) -> int:
    """Devices that heads, MLP channels, experts and the vocabulary are split over."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in MODEL)


def attention_axes(mesh: Mesh, batch: int, *, heads_alike: bool = True) -> CacheAxes:
    """How attention over a cache of `batch` sequences is split.

    Devices that share KV heads share out their sequences, so that no key lies twice. Where their
    number does not divide the batch, each holds a part of every sequence. They share one head each,
    or all heads where these have settings of their own (not `heads_alike`): devices run the same
    program, and the heads of one would need another one.
    """
    split, shared = (KV_HEADS, (GROUP,)) if heads_alike else (None, MODEL)
    together, parts = (DATA, *shared), math.prod(mesh.shape[name] for name in shared)
    if batch % (mesh.shape[DATA] * parts) == 0:
        return CacheAxes(together, split, split, together)
    sequences = data_axis(mesh, batch)
    if parts == 1:
        return CacheAxes(sequences, split, split, sequences)
    heads = MODEL if heads_alike else None
    return CacheAxes(sequences, split, heads, sequences, parts=shared, num_parts=parts)


def cache_axes(mesh: Mesh, cache: AnyCache) -> CacheAxes:
    """How attention over a cache is split."""
    apart = isinstance(cache, LayeredCache) and any(c.heads is not None for c in cache.cells)
    return attention_axes(mesh, cache.parts[0].position.shape[0], heads_alike=not apart)


def split_attention(mesh: Mesh | None, cache: AnyCache, backend: Backend) -> Backend:
    """The backend of a pass over a cache, which merges parts of sequences where there are."""
    if mesh is None:
        return backend
    backend = dataclasses.replace(backend, joins_codes=False)
    axes = cache_axes(mesh, cache)
    return backend if axes.parts is None else SplitBackend(backend, axes, joins_codes=False)


def place[T](mesh: Mesh | None, arrays: T, specs: Any) -> T:
    """A pytree of arrays, split as `specs` says: one `PartitionSpec`, or one for each array.

    Inside jit this is a constraint for the compiler. Arrays that each of several hosts has whole
    become one, of which each host keeps the parts of its devices.
    """
    if mesh is None:
        return arrays
    if isinstance(specs, PartitionSpec):
        specs = jax.tree.map(lambda _: specs, arrays)
    return jax.tree.map(lambda x, spec: _place(x, NamedSharding(mesh, spec)), arrays, specs)


def place_sequences[T](mesh: Mesh | None, arrays: T) -> T:
    """A pytree of arrays [B, ...], split by sequence."""
    if mesh is None:
        return arrays
    return jax.tree.map(
        lambda x: place(mesh, x, PartitionSpec(data_axis(mesh, x.shape[0]))), arrays
    )


def place_logits(mesh: Mesh | None, logits: Float[Array, "B vocab"]) -> Float[Array, "B vocab"]:
    """Logits as the output head leaves them, so that every step has them alike."""
    if mesh is None:
        return logits
    return place(mesh, logits, PartitionSpec(data_axis(mesh, len(logits)), MODEL))


def place_cache[C: AnyCache](mesh: Mesh | None, cache: C) -> C:
    """A cache of any mesh or none on this one, as attention reads it."""
    if mesh is None:
        return cache
    axes = _axes_at_rest(mesh, cache)
    cache = map_parts(cache, lambda part: _in_parts(part, axes.num_parts))
    return place(mesh, cache, cache_specs(cache, axes))


def cache_shardings[C: AnyCache](mesh: Mesh, cache: C) -> C:
    """The cache with how each array, which may be abstract, lies on a mesh.

    Visual banks stay whole along the sequence, or in parts, as they are.
    """
    specs = cache_specs(cache, _axes_at_rest(mesh, cache))
    return jax.tree.map(lambda _, spec: NamedSharding(mesh, spec), cache, specs)


def _axes_at_rest(mesh: Mesh, cache: AnyCache) -> CacheAxes:
    # Lengths, positions and states are read outside attention, too.
    counts = data_axis(mesh, cache.parts[0].position.shape[0])
    return dataclasses.replace(cache_axes(mesh, cache), counts=counts, states=MODEL)


def _in_parts(cache: KVCache, parts: int) -> KVCache:
    """The cache with its visual banks in parts along the sequence, or whole; each is rarely new."""

    def split(bank: VisualBank) -> VisualBank:
        if isinstance(bank.key, SplitTensor):
            return bank
        return parts_to_kernel_layout(
            split_bank(bank, parts), range(parts), 3, pallas_kernels.to_kernel_layout
        )

    if parts > 1:
        return dataclasses.replace(cache, visual=tuple(map(split, cache.visual)))
    return join_banks(cache, pallas_kernels.to_kernel_layout)


def place_shared[T](mesh: Mesh | None, arrays: T) -> T:
    """A pytree of arrays, whole on every device."""
    return place(mesh, arrays, PartitionSpec())


def place_tables[T](mesh: Mesh | None, tables: T, quant: Quant | None = None) -> T:
    """Offline tables or score maps [L, heads, ...], on the devices that attend with them.

    Each device has those of its KV heads. With settings by head, which `quant` may have, devices
    share out sequences instead of heads, see `attention_axes`, and each has all tables.
    """
    groups = quant.groups if isinstance(quant, LayerGroups) else ()
    apart = any(cells.heads is not None for cells, _ in groups)
    return place(mesh, tables, _table_spec(heads_alike=not apart))


def table_shardings(mesh: Mesh | None) -> Callable[[Any], Any] | None:
    """How `vkq_jax.load_tables` reads tables to a mesh: each device's KV heads.

    Tables of heads that the mesh does not divide are another model's, which says so: they are read
    whole.
    """
    if mesh is None:
        return None

    def own(x: Any) -> NamedSharding:
        divided = x.ndim > 1 and x.shape[1] % mesh.shape[KV_HEADS] == 0
        return NamedSharding(mesh, _table_spec() if divided else PartitionSpec())

    return lambda codes: jax.tree.map(own, codes)


def _table_spec(*, heads_alike: bool = True) -> PartitionSpec:
    return CacheAxes(kv_heads=KV_HEADS if heads_alike else None).of_tables


def _place(x: Any, sharding: Sharding) -> Any:
    if isinstance(x, Tracer):
        return jax.lax.with_sharding_constraint(x, sharding)
    if not sharding.is_fully_addressable and isinstance(x, np.ndarray):
        return x  # each host has it whole, as jit takes it
    if sharding.is_fully_addressable or not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)
