"""The slots [start, stop) of a bank that a query sees.

`stop` hides padding and, of the text, tokens to come. `start` comes from a sliding window: the
query of token i sees the keys of tokens j with i - window < j <= i (Mistral 7B, arXiv 2310.06825),
whatever their RoPE positions. Within a bank numbers increase from slot to slot, so that a window
hides its first slots.
"""

import jax.numpy as jnp

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Int32
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.pytree import frozen_pytree
from vkq_jax.slots import filled

__all__ = ["Starts", "causal_text", "window_starts"]


@frozen_pytree
class Starts:
    """The first slot of each bank that each query sees; a start at the bank's length hides it all.

    Attributes:
        visual: of each visual bank.
        text: of the text bank.
    """

    visual: tuple[Int32[Array, "B T"], ...]
    text: Int32[Array, "B T"]


@checked
def window_starts(cache: KVCache, index: Int32[Array, "B T"], window: int) -> Starts:
    """Starts for the queries of tokens `index`, which see `window` tokens up to their own.

    Args:
        cache: made by `empty_cache(..., keep_indices=True)`.
        index: number of each query's token in its whole sequence.
        window: tokens that a query sees, its own included.

    Raises:
        ValueError: the window is empty, or the cache does not keep the numbers of its tokens.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    oldest = index - (window - 1)

    def start(bank: VisualBank | TextBank) -> Int32[Array, "B T"]:
        if bank.index is None:
            raise ValueError(
                "a sliding window needs a cache that keeps the numbers of its tokens: "
                "empty_cache(..., keep_indices=True)"
            )
        hidden = bank.index[:, None] < oldest[..., None]
        hidden = hidden & filled(bank.length, bank.index.shape[-1])[:, None]
        return hidden.sum(-1, dtype=jnp.int32)

    return Starts(tuple(start(bank) for bank in cache.visual), start(cache.text))


def causal_text(length: Int32[Array, "B"], num_queries: int) -> Int32[Array, "B T"]:
    """Text entries visible to each of the last `num_queries` tokens of the text bank."""
    back = jnp.arange(num_queries - 1, -1, -1, dtype=jnp.int32)
    return length[:, None] - back[None]
