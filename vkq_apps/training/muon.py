"""Muon: momentum whose matrices are made orthogonal before they are applied.

Keller Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon), with the scaling of "Muon is
Scalable for LLM Training" (arXiv 2502.16982). Optax has it too; here all matrices of one shape go
through the iteration together and in bfloat16, which takes a tenth of the operations to compile
and to launch.
"""

from collections import defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vkq_jax.array_types import Array, Float

__all__ = ["MuonState", "orthogonalize", "scale_by_muon"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class MuonState(NamedTuple):
    """Momentum of each matrix, float32."""

    momentum: optax.Updates


def scale_by_muon(decay: float = 0.95, rms: float = 0.2) -> optax.GradientTransformation:
    """Updates [*lead, m, n] become orthogonal, one by one over the leading axes.

    They are scaled by rms * sqrt(max(m, n)), so that their elements are about `rms` in size, as
    those of Adam: both can share a learning rate.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MuonState]:
        del params
        momentum = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, momentum, updates)
        leaves, structure = jax.tree.flatten(ahead)
        return structure.unflatten(_orthogonalize_together(leaves, rms)), MuonState(momentum)

    return optax.GradientTransformation(
        lambda params: MuonState(jax.tree.map(jnp.zeros_like, params)), update
    )


def orthogonalize(x: Float[Array, "count m n"]) -> Float[Array, "count m n"]:
    """Five quintic Newton-Schulz steps for m <= n: singular values come near 1. bfloat16."""
    a, b, c = _COEFFICIENTS
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    x = x.astype(jnp.bfloat16)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def _orthogonalize_together(leaves: list[Array], rms: float) -> list[Array]:
    """Each leaf [*lead, m, n], matrices of one shape (or its transpose) in one go."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, leaf in enumerate(leaves):
        rows, columns = sorted(leaf.shape[-2:])
        groups[rows, columns].append(index)
    results: list[Array] = list(leaves)
    for (rows, columns), members in groups.items():
        flat = [_wide(leaves[index]).reshape(-1, rows, columns) for index in members]
        together = orthogonalize(jnp.concatenate(flat)).astype(jnp.float32)
        together = together * (rms * columns**0.5)
        start = 0
        for index, part in zip(members, flat, strict=True):
            piece = together[start : start + len(part)]
            start += len(part)
            leaf = leaves[index]
            piece = piece.reshape(_wide(leaf).shape)
            results[index] = piece if _wide(leaf).shape == leaf.shape else piece.mT
    return results


def _wide(x: Array) -> Array:
    """The matrix or its transpose, whichever has no more rows than columns."""
    return x if x.shape[-2] <= x.shape[-1] else x.mT
