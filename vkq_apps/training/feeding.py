"""Where batches come from: a pool on the device that rendering processes keep refilling.

Training takes more pictures than are rendered, so a picture may be seen again, a few times at most,
until a new chunk takes its chunk's place. A batch mixes several chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from models.sharding.axes import DATA
from models.sharding.placing import place, place_sequences
from vkq_apps.training.chunks import ChunkArrays, fill_chunk, new_chunk
from vkq_apps.training.encoding import RECIPE, Encoding
from vkq_apps.training.pictures import KINDS
from vkq_apps.training.rendering import Renderers
from vkq_jax.array_types import Array
from vkq_jax.pytree import frozen_pytree

__all__ = ["Chunk", "Feed", "InlineFeed", "PooledFeed", "to_device"]


@frozen_pytree
class Chunk:
    """`ChunkArrays` on the device."""

    images: Array
    rows: Array
    labels: Array


def to_device(arrays: ChunkArrays, mesh: Mesh | None = None) -> Chunk:
    """A copy on the default device, or split over a mesh by examples.

    Returns once nothing reads `arrays` any more.
    """
    # On the CPU a device array may be a view of the host's memory, hence the copy.
    copies = [np.array(x) for x in (arrays.images, arrays.rows, arrays.labels)]
    put = jax.device_put if mesh is None else partial(place_sequences, mesh)
    return jax.block_until_ready(Chunk(*map(put, copies)))


class Feed(Protocol):
    """A source of batches."""

    def sources(self, step: int, difficulty: float) -> tuple[tuple[Chunk, ...], Array]:
        """Chunks, and the places int32 [chunks, devices, n] of the examples to take from each.

        Every device takes `n` examples of a chunk from its own part, where places count from 0.
        """
        ...

    @property
    def rendered(self) -> int:
        """Pictures rendered so far."""
        ...


class InlineFeed:
    """Renders each batch when it is asked for: slow, and the same whatever happened before."""

    def __init__(
        self,
        batch: int,
        seed: int,
        encoding: Encoding = RECIPE,
        shares: Mapping[str, float] = KINDS,
        mesh: Mesh | None = None,
    ):
        _check_parts(mesh, batch=batch)
        self._batch, self._seed, self.rendered = batch, seed, 0
        self._encoding, self._shares, self._mesh = encoding, shares, mesh

    def sources(self, step: int, difficulty: float) -> tuple[tuple[Chunk, ...], Array]:
        """The batch of a step."""
        arrays = new_chunk(self._batch, self._encoding.row_length)
        seed = f"{self._seed}/inline/{step}"
        fill_chunk(arrays, seed, difficulty, self._encoding, self._shares)
        self.rendered += self._batch
        parts = _parts(self._mesh)
        places = np.arange(self._batch // parts, dtype=np.int32)
        places = np.broadcast_to(places, (1, parts, len(places)))
        return (to_device(arrays, self._mesh),), _put_places(places, self._mesh)


class PooledFeed:
    """Chunks on the device, the oldest replaced as new ones are rendered.

    Copies run on the caller's thread, between steps: while a program with cuDNN attention runs for
    the first time, CUDA calls of another thread make both fail.
    """

    def __init__(
        self,
        renderers: Renderers,
        *,
        chunks: int,
        mixed: int,
        batch: int,
        chunk_size: int,
        seed: int,
        mesh: Mesh | None = None,
    ):
        """Waits until `mixed` chunks are there.

        Args:
            renderers: where chunks come from.
            chunks: size of the pool.
            mixed: chunks that a batch is drawn from.
            batch: examples of a batch, a multiple of `mixed`.
            chunk_size: examples of a chunk.
            seed: of the draws.
            mesh: devices that the chunks are split over.
        """
        if batch % mixed:
            raise ValueError(f"batch must be a multiple of mixed={mixed}, got {batch}")
        _check_parts(mesh, chunk=chunk_size, **{"batch / mixed": batch // mixed})
        self._renderers, self._capacity = renderers, chunks
        self._pool: list[Chunk] = []
        self._next = 0
        self._mixed, self._each, self._chunk_size = mixed, batch // mixed, chunk_size
        self._seed, self._mesh = seed, mesh
        # At least as many as training consumes; what is left over waits in memory.
        self._refills = max(3, batch // chunk_size)
        while len(self._pool) < mixed:
            self._refill(timeout=1.0)

    @property
    def rendered(self) -> int:
        """Pictures rendered so far."""
        return self._renderers.rendered

    def sources(self, step: int, difficulty: float) -> tuple[tuple[Chunk, ...], Array]:
        """`mixed` random chunks and random places in them."""
        self._renderers.set_difficulty(difficulty)
        for _ in range(self._refills):
            if not self._refill(timeout=0.0):
                break
        rng = np.random.default_rng((self._seed, step))
        chosen = rng.choice(len(self._pool), self._mixed, replace=False)
        chunks = tuple(self._pool[index] for index in chosen)
        parts = _parts(self._mesh)
        shape = (self._mixed, parts, self._each // parts)
        places = rng.integers(self._chunk_size // parts, size=shape, dtype=np.int32)
        return chunks, _put_places(places, self._mesh)

    def _refill(self, timeout: float) -> bool:
        """Moves one rendered chunk to the device; False if there is none in time."""
        chunk = self._renderers.take(partial(to_device, mesh=self._mesh), timeout)
        if chunk is None:
            return False
        if len(self._pool) < self._capacity:
            self._pool.append(chunk)
        else:
            self._pool[self._next] = chunk
            self._next = (self._next + 1) % self._capacity
        return True


def _parts(mesh: Mesh | None) -> int:
    return 1 if mesh is None else mesh.shape[DATA]


def _check_parts(mesh: Mesh | None, **sizes: int) -> None:
    parts = _parts(mesh)
    for name, size in sizes.items():
        if size % parts:
            raise ValueError(f"{name} must be a multiple of devices={parts}, got {size}")


def _put_places(places: np.ndarray, mesh: Mesh | None) -> Array:
    return place(mesh, jnp.asarray(places), PartitionSpec(None, DATA))
