"""The beginning of new text tokens' way through the layers of any model.

step = begin_decode(cache)
for layer in range(num_layers):
    output, step = step.attend(layer, query, key, value)
cache = step.finish()
"""

from __future__ import annotations

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool
from vkq_jax.attention.backend import Backend
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.passes import pass_checks as checks
from vkq_jax.passes.cross_pass import start_cross
from vkq_jax.passes.decode_pass import Decode, start_decode
from vkq_jax.passes.layered_passes import LayeredDecode

__all__ = ["Decode", "LayeredDecode", "begin_decode"]


@checked
def begin_decode(
    cache: AnyCache, valid: Bool[Array, "B T"] | None = None, *, backend: Backend = Backend()
) -> Decode | LayeredDecode:
    """Begins the next T text tokens of each of B sequences; each sees the ones before it.

    Args:
        cache: all tokens before, with room for the new ones.
        valid: tokens to write; False for sequences that have ended and for padding. By default
            one token of every sequence.
        backend: what attends; `pallas_kernels.Backend()` on a GPU.

    Raises:
        ValueError: a mask that does not fit the cache, or, where lengths are known, tokens that
            have no room. Inside jit the attention of such a sequence is NaN instead.
    """
    if isinstance(cache, LayeredCache):
        parts = tuple(start_decode(part, valid, backend) for part in cache.text_parts)
        cross = ()
        if cache.cross:
            cross = start_cross(cache, None, tokens=parts[0].valid.shape[1], backend=backend)
        return LayeredDecode(
            parts,
            cross,
            cache.recurrent,
            checks.nothing_moved(cache.recurrent),
            cells=cache.cells,
            given=cache.given,
        )
    return start_decode(cache, valid, backend)
