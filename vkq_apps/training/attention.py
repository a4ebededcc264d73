"""Attention of training: fused where the device has it, plain XLA elsewhere.

Three kinds of attention occur. Patches see each other; prefix and image are causal; text rows see
prefix, image and, causally, their own turn. The first two are fused ("cudnn"), the last has a mask
that differs from row to row and is short, so it stays in XLA.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float

__all__ = ["Implementation", "choose_implementation", "fused_attention", "row_attention"]

Implementation = Literal["cudnn", "cudnn_padded", "xla"]
_IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
_BLOCK = 64


def fused_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    *,
    causal: bool,
    implementation: Implementation,
) -> Float[Array, "B T N H"]:
    """Attention of all positions to all, or to all before them; scores scaled by H^-1/2."""
    if implementation != "cudnn_padded":
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation=implementation
        )
    batch, length = query.shape[:2]
    padding = ((0, 0), (0, -length % _BLOCK), (0, 0), (0, 0))
    lengths = jnp.full(batch, length, jnp.int32)
    out = jax.nn.dot_product_attention(
        *(jnp.pad(x, padding) for x in (query, key, value)),
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :length]


def row_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    text_mask: Bool[Array, "B R S"],
    *,
    implementation: Implementation,
) -> Float[Array, "B T N H"]:
    """Attention of a packed row: S positions of prefix, image and R text tokens.

    `text_mask` says what each of the R text tokens sees; positions before them are causal.
    """
    start = query.shape[1] - text_mask.shape[1]
    image = fused_attention(
        query[:, :start],
        key[:, :start],
        value[:, :start],
        causal=True,
        implementation=implementation,
    )
    text = jax.nn.dot_product_attention(
        query[:, start:], key, value, mask=text_mask[:, None], implementation="xla"
    )
    return jnp.concatenate([image, text], axis=1)


@functools.cache
def choose_implementation(wanted: str = "auto", devices: int = 1) -> tuple[Implementation, str]:
    """The implementation that runs here, and why those before it in the order do not.

    With "auto", the first of cudnn, cudnn_padded and xla that computes and differentiates a small
    example as XLA does; xla on several devices.
    """
    if wanted != "auto":
        for known in _IMPLEMENTATIONS:
            if wanted == known:
                return known, ""
        raise ValueError(
            f"implementation must be auto or one of {', '.join(_IMPLEMENTATIONS)}; got {wanted!r}"
        )
    if jax.default_backend() != "gpu":
        return "xla", "cudnn needs a GPU"
    if devices > 1:
        return "xla", "cudnn is tried on one device alone"
    refusals = []
    for candidate in _IMPLEMENTATIONS[:-1]:
        try:
            error = _relative_error(candidate)
        except Exception as refusal:  # cuDNN refuses with exceptions of many types
            refusals.append(f"{candidate}: {' '.join(str(refusal).split())[:200]}")
            continue
        if error < 0.02:
            return candidate, "; ".join(refusals)
        refusals.append(f"{candidate}: differs from xla by {error:.3g} of the norm")
    return "xla", "; ".join(refusals)


def _relative_error(candidate: Implementation) -> float:
    """Difference of outputs and gradients from XLA's, at training's lengths.

    The largest over all of them of the difference's norm by their own, about 0.004 in bfloat16.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation: Implementation, x: Array) -> tuple[Array, ...]:
        results = []
        for causal, length in ((False, 577), (True, 579)):
            function = functools.partial(
                fused_attention, causal=causal, implementation=implementation
            )
            out, pullback = jax.vjp(function, *x[:3, :, :length])
            results += [out, *pullback(x[3][:, :length])]
        return tuple(x.astype(jnp.float32) for x in results)

    x = jax.random.normal(jax.random.key(0), (4, 2, 579, 4, 64), jnp.bfloat16)
    errors = [
        jnp.linalg.norm((got - want).ravel()) / jnp.linalg.norm(want.ravel())
        for got, want in zip(run(candidate, x), run("xla", x), strict=True)
    ]
    return max(map(float, errors))
