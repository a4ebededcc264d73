"""The beginning of a prompt's way through the layers of any model.

reading = begin_prefill(cache, visual=is_image_token)
for layer in range(num_layers):
    output, reading = reading.attend(layer, query, key, value)
cache = reading.finish()
"""

from __future__ import annotations

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.attention.backend import Backend
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.passes import pass_checks as checks
from vkq_jax.passes.cross_pass import PromptPictures, start_cross
from vkq_jax.passes.layered_passes import LayeredPrefill
from vkq_jax.passes.prefill_pass import Prefill, start_prefill

__all__ = ["LayeredPrefill", "Prefill", "begin_prefill"]


@checked
def begin_prefill(
    cache: AnyCache,
    visual: Bool[Array, "B T"],
    *,
    valid: Bool[Array, "B T"] | None = None,
    num_visual: int | None = None,
    positions: Int32[Array, "B T *axes"] | None = None,
    advance: Int32[Array, "B"] | None = None,
    first_turn: bool = False,
    keep_positions: bool = False,
    pictures: PromptPictures | None = None,
    backend: Backend = Backend(),
) -> Prefill | LayeredPrefill:
    """Begins a prompt of B sequences and T tokens after what the cache holds.

    Args:
        cache: an empty one, from `empty_cache`, or that of earlier turns.
        visual: which tokens are visual: those are coded, the others are text.
        valid: False where a token is padding, which may lie at either side; by default none is.
        num_visual: most visual tokens of a sequence, the size of the new bank. Needed inside jit,
            where it is static; counted by default.
        positions: RoPE positions from 0 at the prompt's first token, which those of earlier turns
            are added to; by default tokens are counted.
        advance: with `positions`, how far they move on: the position after the last token.
        first_turn: the cache is empty, so that nothing of it is read. Only for speed.
        keep_positions: keep the visual tokens' RoPE positions; they are where the cache has a
            `key_bias`, which needs them.
        pictures: for a cache with cross-attention layers, what those attend to besides the
            pictures of earlier turns.
        backend: what attends and codes; `pallas_kernels.Backend()` on a GPU.

    Raises:
        ValueError: shapes or dtypes that do not fit; `num_visual` is missing inside jit; and, where
            lengths are known, a prompt that has no room or a cache that is not empty. Inside jit
            the attention of such a sequence is NaN instead.
    """
    if pictures is not None and not (isinstance(cache, LayeredCache) and cache.cross):
        raise ValueError("pictures: this cache has no cross-attention layers: mark visual tokens")

    def begin(part: KVCache) -> Prefill:
        return start_prefill(
            part,
            visual,
            valid=valid,
            num_visual=num_visual,
            positions=positions,
            advance=advance,
            first_turn=first_turn,
            keep_positions=keep_positions,
            backend=backend,
        )

    if isinstance(cache, LayeredCache):
        parts, cross = tuple(map(begin, cache.text_parts)), ()
        if cache.cross:
            cross = start_cross(cache, pictures, tokens=visual.shape[1], backend=backend)
        return LayeredPrefill(
            parts,
            cross,
            cache.recurrent,
            checks.nothing_moved(cache.recurrent),
            cells=cache.cells,
            given=cache.given,
        )
    return begin(cache)
