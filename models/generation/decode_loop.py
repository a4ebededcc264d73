"""The decode loop: a `lax.while_loop` over one state, until every sequence has stopped."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.generation.decode_step import decode_step
from models.generation.gpu_options import gpu_options
from models.generation.token_chooser import TokenChooser
from models.generation.token_history import TokenHistory
from models.model import Model
from models.sampling import Sampling
from models.sharding.placing import (
    place,
)
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.kv_cache import FixedParts
from vkq_jax.cache.layered import AnyCache
from vkq_jax.pytree import frozen_pytree
from vkq_jax.validation import is_traced

__all__ = [
    "DecodeState",
    "decode_loop",
    "emit_tokens",
    "emit_tokens_in_place",
]


@frozen_pytree
class DecodeState:
    """The state that decoding carries from token to token.

    Attributes:
        logits: of the next token, not yet sampled.
        cache: holds every token so far, the emitted ones included.
        done: sequences that have emitted a stop token.
        finite: sequences all of whose tokens were chosen from finite logits.
        key: PRNG key for the tokens to come; None when decoding is greedy.
        history: the tokens so far, for sampling settings that look back at them.
    """

    logits: Float[Array, "B vocab"]
    cache: AnyCache
    done: Bool[Array, "B"]
    finite: Bool[Array, "B"]
    key: jax.Array | None
    history: TokenHistory | None

    @classmethod
    def start(
        cls,
        logits: Float[Array, "B vocab"],
        cache: AnyCache,
        key: jax.Array | None = None,
        history: TokenHistory | None = None,
    ) -> DecodeState:
        """The state behind a prefill, before the first token."""
        done = jnp.zeros(logits.shape[0], bool)
        return cls(logits, cache, done, ~done, key, history)


def decode_loop(
    model: Model,
    state: DecodeState,
    limit: int | None = None,
    *,
    steps: int,
    sampling: Sampling,
    stop_tokens: tuple[int, ...],
    pad: int = 0,
    implementation: str | None = None,
    consume: bool = False,
) -> tuple[Int32[Array, "B steps"], Int32[Array, "B"], DecodeState]:
    """Emits up to `steps` tokens a sequence; ends early once all have stopped.

    Each emitted token, a stop token too, is fed to the model at once: the cache that comes back is
    complete, and a conversation goes on from it without bookkeeping.

    Args:
        model: weights and configuration.
        state: from `prefill` or an earlier call.
        limit: emit at most this many tokens instead, without compiling anew for each number.
        steps: size of the token buffer.
        sampling: how tokens are chosen; what it leaves open is off.
        stop_tokens: ids that end a sequence.
        pad: what fills the buffer behind a sequence's last token.
        implementation: of attention over the cache, see `pallas_kernels.IMPLEMENTATIONS`.
        consume: donate the buffers of `state`, all but its key and what decoding never changes,
            to the new state, so that the text bank never exists twice; `state` must not be used
            afterwards. Inside jit or vmap, where buffers belong to the caller, this has no effect.

    Returns:
        Tokens (`pad` behind the last one), how many each sequence emitted, and the new state.
    """
    # Visual banks, score map and tables never change: beside the state, no loop carries and no call
    # returns them, which for the banks would be a copy of the largest thing there is.
    fixed = state.cache.fixed()
    tokens, lengths, state = _emitter(model, state, consume)(
        model,
        fixed,
        state.key,  # the caller's own
        dataclasses.replace(_without_fixed(state), key=None),
        TokenChooser.create(sampling, stop_tokens),
        steps if limit is None else limit,
        steps=steps,
        pad=pad,
        implementation=implementation,
        reach=_reach(fixed),
    )
    return tokens, lengths, _with_fixed(state, fixed)


def _emit_tokens(
    model: Model,
    fixed: Any,
    key: jax.Array | None,
    state: DecodeState,
    chooser: TokenChooser,
    limit: int,
    *,
    steps: int,
    pad: int,
    implementation: str | None,
    reach: int | None = None,
) -> tuple[Int32[Array, "B steps"], Int32[Array, "B"], DecodeState]:
    """`decode_loop`, to be compiled, with the fixed parts and the key beside the state.

    `reach` is a bound of visual tokens' RoPE positions, see `FixedParts.with_waves`.
    """
    state = dataclasses.replace(state, key=key)
    fixed = jax.tree.map(lambda part: part.with_waves(reach), fixed, is_leaf=_is_fixed)
    stops = jnp.asarray(chooser.stop_tokens, jnp.int32)
    batch = state.done.shape[0]

    def unfinished(carry):
        step, state, _, _ = carry
        return (step < limit) & ~jnp.all(state.done)

    def emit(carry):
        step, state, tokens, lengths = carry
        key, draw = (None, None) if state.key is None else jax.random.split(state.key)
        token = chooser.choose(state.logits, state.history, state.cache.position, draw)
        active = ~state.done
        finite = state.finite & (state.done | jnp.isfinite(state.logits).all(-1))
        history = None if state.history is None else state.history.add(token, active)
        tokens = tokens.at[:, step].set(jnp.where(active, token, pad))
        lengths = lengths + active.astype(jnp.int32)
        stopped = jnp.isin(token, stops)
        cache = _with_fixed(state, fixed).cache
        logits, cache = decode_step(model, token, cache, active, implementation=implementation)
        state = DecodeState(logits, cache, state.done | stopped, finite, key, history)
        return step + jnp.int32(1), _without_fixed(state), tokens, lengths

    tokens = jnp.full((batch, steps), pad, jnp.int32)
    start = (jnp.int32(0), state, tokens, jnp.zeros(batch, jnp.int32))
    _, state, tokens, lengths = jax.lax.while_loop(unfinished, emit, start)
    # Every host reads what was emitted.
    tokens, lengths, done, finite = place(
        model.mesh, (tokens, lengths, state.done, state.finite), PartitionSpec()
    )
    return tokens, lengths, dataclasses.replace(state, done=done, finite=finite)


_STATIC = ("steps", "pad", "implementation", "reach")
emit_tokens = jax.jit(_emit_tokens, static_argnames=_STATIC)
emit_tokens_in_place = jax.jit(_emit_tokens, static_argnames=_STATIC, donate_argnames="state")


def _emitter(model: Model, state: DecodeState, consume: bool) -> Callable[..., Any]:
    """The compiled loop for this call: an inner jit takes no options, and donates nothing."""
    if is_traced((model, state, jnp.zeros(()))):
        return emit_tokens
    options = gpu_options(model.mesh, len(state.done))
    if options is not None:
        return _emit_on_gpu(tuple(options.items()), consume)
    return emit_tokens_in_place if consume else emit_tokens


@functools.cache
def _emit_on_gpu(options: tuple[tuple[str, Any], ...], consume: bool) -> Callable[..., Any]:
    return jax.jit(
        _emit_tokens,
        static_argnames=_STATIC,
        donate_argnames="state" if consume else (),
        compiler_options=dict(options),
    )


def _is_fixed(tree: Any) -> bool:
    return isinstance(tree, FixedParts)


def _reach(fixed: FixedParts | tuple[FixedParts, ...]) -> int | None:
    """The bound of the visual positions of all parts, which are the same in all."""
    parts = (fixed,) if isinstance(fixed, FixedParts) else fixed
    return next((found for part in parts if (found := part.visual_reach())), None)


def _without_fixed(state: DecodeState) -> DecodeState:
    return dataclasses.replace(state, cache=state.cache.without_fixed())


def _with_fixed(state: DecodeState, fixed: Any) -> DecodeState:
    return dataclasses.replace(state, cache=state.cache.with_fixed(fixed))
