"""Where batches come from: a pool on the device that rendering processes keep refilling.

Training takes more pictures than are rendered, so a picture may be seen again, a few times at most,
until a new chunk takes its chunk's place. A batch mixes several chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

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


def to_device(arrays: ChunkArrays) -> Chunk:
    """A copy on the default device; returns once nothing reads `arrays` any more."""
    # On the CPU a device array may be a view of the host's memory, hence the copy.
    return jax.block_until_ready(
        Chunk(*(jax.device_put(np.array(x)) for x in (arrays.images, arrays.rows, arrays.labels)))
    )


class Feed(Protocol):
    """A source of batches."""

    def sources(self, step: int, difficulty: float) -> tuple[tuple[Chunk, ...], Array]:
        """Chunks and, for each, the places int32 [chunks, n] of the examples to take from it."""
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
    ):
        self._batch, self._seed, self.rendered = batch, seed, 0
        self._encoding, self._shares = encoding, shares

    def sources(self, step: int, difficulty: float) -> tuple[tuple[Chunk, ...], Array]:
        """The batch of a step."""
        arrays = new_chunk(self._batch, self._encoding.row_length)
        seed = f"{self._seed}/inline/{step}"
        fill_chunk(arrays, seed, difficulty, self._encoding, self._shares)
        self.rendered += self._batch
        return (to_device(arrays),), jnp.arange(self._batch, dtype=jnp.int32)[None]


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
    ):
        """Waits until `mixed` chunks are there.

        Args:
            renderers: where chunks come from.
            chunks: size of the pool. mixed: chunks that a batch is drawn from.
            batch: examples of a batch, a multiple of `mixed`. chunk_size: examples of a chunk.
            seed: of the draws.
        """
        if batch % mixed:
            raise ValueError(f"batch must be a multiple of mixed={mixed}, got {batch}")
        self._renderers, self._capacity = renderers, chunks
        self._pool: list[Chunk] = []
        self._next = 0
        self._mixed, self._each, self._chunk_size = mixed, batch // mixed, chunk_size
        self._seed = seed
        while len(self._pool) < mixed:
            self._refill(timeout=1.0)

    @property
    def rendered(self) -> int:
        """Pictures rendered so far."""
        return self._renderers.rendered

    def sources(self, step: int, difficulty: float) -> tuple[tuple[Chunk, ...], Array]:
        """`mixed` random chunks and random places in them."""
        self._renderers.set_difficulty(difficulty)
        # More than training consumes; what is left over waits in memory.
        for _ in range(3):
            if not self._refill(timeout=0.0):
                break
        rng = np.random.default_rng((self._seed, step))
        chosen = rng.choice(len(self._pool), self._mixed, replace=False)
        chunks = tuple(self._pool[index] for index in chosen)
        places = rng.integers(self._chunk_size, size=(self._mixed, self._each), dtype=np.int32)
        return chunks, jnp.asarray(places)

    def _refill(self, timeout: float) -> bool:
        """Moves one rendered chunk to the device; False if there is none in time."""
        chunk = self._renderers.take(to_device, timeout)
        if chunk is None:
            return False
        if len(self._pool) < self._capacity:
            self._pool.append(chunk)
        else:
            self._pool[self._next] = chunk
            self._next = (self._next + 1) % self._capacity
        return True
