"""Choosing the next token from logits: greedy, temperature, top-k, top-p."""

import dataclasses

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Int32

__all__ = ["Sampling", "sample"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the default takes the most probable one.

    Attributes:
        temperature: 0 is greedy decoding; otherwise logits are divided by it.
        top_k: keep the k most probable tokens.
        top_p: keep the smallest set of most probable tokens whose probability reaches this
            (nucleus sampling, arXiv 1904.09751); after `top_k`, as in Hugging Face.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.greedy and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p need a temperature above 0: greedy ignores them")

    @property
    def greedy(self) -> bool:
        """Whether no randomness is involved (and no PRNG key needed)."""
        return self.temperature == 0.0


def sample(
    logits: Float[Array, "B vocab"], sampling: Sampling, key: jax.Array | None
) -> Int32[Array, "B"]:
    """One token for each sequence; `key` may be None for greedy decoding."""
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if key is None:
        raise ValueError("sampling with a temperature needs a PRNG key: key=jax.random.key(seed)")
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None:
        kept = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0]
        logits = jnp.where(logits < kept[..., -1:], -jnp.inf, logits)
    if sampling.top_p is not None:
        logits = _keep_nucleus(logits, sampling.top_p)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _keep_nucleus(logits: Float[Array, "B vocab"], top_p: float) -> Float[Array, "B vocab"]:
    order = jnp.argsort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    # A token stays while the mass before it has not reached top_p: the first one always does.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    rank = jnp.argsort(order, axis=-1)
    keep = jnp.take_along_axis(before < top_p, rank, axis=-1)
    return jnp.where(keep, logits, -jnp.inf)
