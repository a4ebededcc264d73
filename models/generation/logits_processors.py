"""Logits processors: pure functions from logits [B, vocab] to logits, as transformers has them.

Each keeps, bans (-inf) or shifts tokens. Numbers may be traced; lists of tokens are constants.
"""

import jax
import jax.numpy as jnp
import numpy as np

from models.generation.token_history import TokenHistory
from vkq_jax.array_types import Array, Bool, Float, Int32

__all__ = [
    "add_sequence_bias",
    "ban",
    "ban_repeated_ngrams",
    "divide_by_temperature",
    "force",
    "keep_above_epsilon",
    "keep_above_eta",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "keep_typical",
    "penalize_repetition",
]

type Logits = Float[Array, "B vocab"]
type Number = Float[Array, ""]

_BANNED = -jnp.inf


def ban(logits: Logits, tokens: tuple[int, ...], when: Bool[Array, "*#B"] | bool = True) -> Logits:
    """Bans `tokens` in the sequences where `when` holds."""
    vocab = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    banned = jnp.isin(vocab, jnp.asarray(tokens, jnp.int32))
    return jnp.where(banned[None] & jnp.reshape(when, (-1, 1)), _BANNED, logits)


def force(logits: Logits, tokens: tuple[int, ...], when: Bool[Array, "*#B"]) -> Logits:
    """Bans all but `tokens`, which become equally probable, where `when` holds."""
    vocab = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    forced = jnp.where(jnp.isin(vocab, jnp.asarray(tokens, jnp.int32)), 0.0, _BANNED)
    return jnp.where(jnp.reshape(when, (-1, 1)), forced.astype(logits.dtype)[None], logits)


def penalize_repetition(logits: Logits, history: TokenHistory, penalty: Number) -> Logits:
    """Divides positive logits of tokens in the history by `penalty`, multiplies negative ones."""
    seen = _mark(logits, history.tokens, history.valid)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def ban_repeated_ngrams(logits: Logits, history: TokenHistory, size: Int32[Array, ""]) -> Logits:
    """Bans each token that would end a run of `size` tokens which the history already holds."""
    tokens, length = history.tokens, history.length
    slots = tokens.shape[1]

    def compare(i, same):
        # Token i of the run that starts at each slot, and token i of the last size - 1 tokens.
        of_suffix = jnp.maximum(length - size + jnp.int32(1) + i, 0)[:, None]
        here = jnp.take_along_axis(tokens, of_suffix, axis=1, mode="clip")
        return same & (jnp.roll(tokens, -i, axis=1) == here)

    same = jax.lax.fori_loop(
        jnp.int32(0), jnp.minimum(size - 1, slots), compare, jnp.ones(tokens.shape, bool)
    )
    last = jnp.arange(slots, dtype=jnp.int32)[None] + size - 1
    ends = jnp.take_along_axis(tokens, jnp.broadcast_to(last, tokens.shape), axis=1, mode="clip")
    # `last < slots` also where a huge size has wrapped around.
    inside = (last >= 0) & (last < length[:, None])
    return jnp.where(_mark(logits, ends, same & inside), _BANNED, logits)


def add_sequence_bias(
    logits: Logits, history: TokenHistory | None, biases: tuple[tuple[tuple[int, ...], float], ...]
) -> Logits:
    """Adds each bias to the logit of its run's last token, where the others are the latest tokens.

    Runs of one token need no history. A bias of -inf bans.
    """
    single = [(run[0], bias) for run, bias in biases if len(run) == 1]
    longer = [(run, bias) for run, bias in biases if len(run) > 1]
    if single:
        tokens, added = zip(*single, strict=True)
        logits = logits.at[:, np.array(tokens, np.int32)].add(np.array(added, np.float32))
    if longer:
        assert history is not None
        width = max(len(run) for run, _ in longer) - 1
        # Prefixes, their last token last; -1 where a prefix is shorter: that matches anything.
        prefixes = np.full((len(longer), width), -1, np.int32)
        for row, (run, _) in zip(prefixes, longer, strict=True):
            row[width - len(run) + 1 :] = run[:-1]
        slot = history.length[:, None] - width + jnp.arange(width, dtype=jnp.int32)[None]
        latest = jnp.take_along_axis(history.tokens, jnp.maximum(slot, 0), axis=1)
        latest = jnp.where(slot >= 0, latest, jnp.int32(-2))
        match = ((latest[:, None] == prefixes[None]) | (prefixes == -1)[None]).all(-1)
        added = jnp.where(match, np.array([bias for _, bias in longer], np.float32)[None], 0.0)
        logits = logits.at[:, np.array([run[-1] for run, _ in longer], np.int32)].add(added)
    return logits


def divide_by_temperature(logits: Logits, temperature: Number) -> Logits:
    """Logits over temperature, shifted so that the largest is 0: none overflows.

    Temperatures beyond 1e-30 and 1e30, which mean greedy and uniform, count as these: XLA turns the
    division into a product, and -inf times 0 would be NaN.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - jnp.where(jnp.isfinite(largest), largest, 0.0)
    return shifted / jnp.clip(temperature, 1e-30, 1e30)


def keep_top_k(logits: Logits, k: Int32[Array, ""]) -> Logits:
    """Keeps the k largest logits, and those equal to the k-th."""
    vocab = logits.shape[-1]
    place = jnp.maximum(vocab - k, 0)
    kth = jnp.take(jnp.sort(logits, axis=-1), place, axis=-1)[:, None]
    return jnp.where(logits < kth, _BANNED, logits)


def keep_top_p(logits: Logits, rest: Number) -> Logits:
    """Bans the least probable tokens while their probability together is at most `rest`, 1 - p."""
    order = jnp.argsort(logits, axis=-1, stable=True).astype(jnp.int32)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    banned = jnp.cumsum(probabilities, axis=-1) <= rest
    banned = banned.at[:, -1].set(False)
    row = jnp.arange(len(logits), dtype=jnp.int32)[:, None]
    banned = jnp.zeros_like(banned).at[row, order].set(banned)
    return jnp.where(banned, _BANNED, logits)


def keep_min_p(logits: Logits, min_p: Number) -> Logits:
    """Keeps tokens at least `min_p` times as probable as the most probable one."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = min_p * jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(probabilities < least, _BANNED, logits)


def keep_typical(logits: Logits, mass: Number) -> Logits:
    """Keeps the tokens whose surprise is closest to the entropy, until they reach `mass`."""
    logs = jax.nn.log_softmax(logits, axis=-1)
    distance = jnp.abs(-logs - _entropy(logs)[:, None])
    order = jnp.argsort(distance, axis=-1, stable=True)
    reached = jnp.cumsum(jnp.take_along_axis(jnp.exp(logs), order, axis=-1), axis=-1) < mass
    last = jnp.minimum(reached.sum(-1, dtype=jnp.int32), logits.shape[-1] - 1)
    sorted_distance = jnp.take_along_axis(distance, order, axis=-1)
    farthest = jnp.take_along_axis(sorted_distance, last[:, None], axis=-1)
    return jnp.where(distance > farthest, _BANNED, logits)


def keep_above_epsilon(logits: Logits, epsilon: Number | Float[Array, "B 1"]) -> Logits:
    """Keeps tokens of a probability of at least `epsilon`, and the most probable one."""
    few = jax.nn.softmax(logits, axis=-1) < epsilon
    return jnp.where(few & (logits < jnp.max(logits, axis=-1, keepdims=True)), _BANNED, logits)


def keep_above_eta(logits: Logits, epsilon: Number) -> Logits:
    """`keep_above_epsilon` of min(epsilon, sqrt(epsilon) * exp(-entropy))."""
    entropy = _entropy(jax.nn.log_softmax(logits, axis=-1))[:, None]
    least = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy))
    return keep_above_epsilon(logits, least)


def _entropy(logs: Logits) -> Float[Array, "B"]:
    """Entropy in nats of log-probabilities, some of which may be -inf."""
    return -(jnp.exp(logs) * jnp.where(jnp.isfinite(logs), logs, 0.0)).sum(-1)


def _mark(
    logits: Logits, tokens: Int32[Array, "B S"], where: Bool[Array, "B S"]
) -> Bool[Array, "B vocab"]:
    """Which of the vocabulary are among `tokens`; ids outside it are left out."""
    row = jnp.arange(len(tokens), dtype=jnp.int32)[:, None]
    token = jnp.where(where, tokens, logits.shape[-1])
    return jnp.zeros(logits.shape, bool).at[row, token].set(True, mode="drop")
