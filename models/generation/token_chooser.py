"""`Sampling` as the decode loop takes it: logits processors in order, then the choice."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.generation import logits_processors as processors
from models.generation.token_history import TokenHistory
from models.sampling import Sampling
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["TokenChooser"]


@frozen_pytree
class TokenChooser:
    """Chooses tokens as `Sampling` says; its attributes are named alike.

    Numbers are leaves of the pytree: with another temperature or penalty the same compiled loop
    runs on. A setting that is None is left out; which ones are, and every list of tokens, is part
    of the pytree's structure.

    Attributes:
        rest: 1 - top_p, rounded once.
        biases: `sequence_bias`, and `bad_words_ids` with a bias of -inf.
        stop_tokens: those that end a sequence.
    """

    repetition_penalty: Float[Array, ""] | None
    no_repeat_ngram_size: Int32[Array, ""] | None
    min_length: Int32[Array, ""] | None
    min_new_tokens: Int32[Array, ""] | None
    temperature: Float[Array, ""] | None
    top_k: Int32[Array, ""] | None
    rest: Float[Array, ""] | None
    min_p: Float[Array, ""] | None
    typical_p: Float[Array, ""] | None
    epsilon_cutoff: Float[Array, ""] | None
    eta_cutoff: Float[Array, ""] | None
    biases: tuple[tuple[tuple[int, ...], float], ...] = static_field()
    forced_bos: tuple[int, ...] = static_field()
    forced_eos: tuple[int, ...] = static_field()
    suppressed: tuple[int, ...] = static_field()
    suppressed_first: tuple[int, ...] = static_field()
    stop_tokens: tuple[int, ...] = static_field()

    @classmethod
    def create(cls, sampling: Sampling, stop_tokens: tuple[int, ...]) -> TokenChooser:
        """Settings that are None or off are left out; so are lengths where nothing stops."""
        drawn, stops = not sampling.greedy, bool(stop_tokens)

        def number(name: str, off: float, when: bool = True, kind: Any = np.float32) -> Any:
            value = getattr(sampling, name)
            return kind(value) if when and value not in (None, off) else None

        def count(name: str, when: bool = True) -> Any:
            return number(name, 0, when, np.int32)

        def tokens(name: str) -> Any:
            return getattr(sampling, name) or ()

        single_stops = [(stop,) for stop in stop_tokens]
        bad = [run for run in tokens("bad_words_ids") if run not in single_stops]
        return cls(
            repetition_penalty=number("repetition_penalty", 1.0),
            no_repeat_ngram_size=count("no_repeat_ngram_size"),
            min_length=count("min_length", stops and sampling.min_new_tokens is None),
            min_new_tokens=count("min_new_tokens", stops),
            temperature=number("temperature", 0.0),
            top_k=count("top_k", drawn),
            rest=number("top_p", 1.0, drawn, lambda top_p: np.float32(1.0 - top_p)),
            min_p=number("min_p", 0.0, drawn),
            typical_p=number("typical_p", 1.0, drawn),
            epsilon_cutoff=number("epsilon_cutoff", 0.0, drawn),
            eta_cutoff=number("eta_cutoff", 0.0, drawn),
            biases=(*tokens("sequence_bias"), *((run, -np.inf) for run in bad)),
            forced_bos=tokens("forced_bos_token_id"),
            forced_eos=tokens("forced_eos_token_id"),
            suppressed=tokens("suppress_tokens"),
            suppressed_first=tokens("begin_suppress_tokens"),
            stop_tokens=stop_tokens,
        )

    @property
    def looks_back(self) -> tuple[str, ...]:
        """Names of the settings in use that read the tokens so far."""
        found = {
            "repetition_penalty": self.repetition_penalty is not None,
            "no_repeat_ngram_size": self.no_repeat_ngram_size is not None,
            "bad_words_ids or sequence_bias": any(len(run) > 1 for run, _ in self.biases),
        }
        return tuple(name for name, used in found.items() if used)

    @property
    def needs_history(self) -> bool:
        """Whether `process` reads its `history`, if only its counts."""
        counts = self.min_new_tokens is not None or self.forced_eos or self.suppressed_first
        return bool(self.looks_back or counts)

    def choose(
        self,
        logits: Float[Array, "B vocab"],
        history: TokenHistory | None,
        position: Int32[Array, "B"],
        key: jax.Array | None,
    ) -> Int32[Array, "B"]:
        """One token for each sequence.

        Args:
            logits: of the model.
            history: the tokens so far; None is enough where `needs_history` is False.
            position: tokens so far, those of earlier turns too.
            key: PRNG key; None is enough for greedy decoding.
        """
        logits = self.process(logits.astype(jnp.float32), history, position)
        if self.temperature is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if key is None:
            raise ValueError(
                "sampling with a temperature needs a PRNG key: key=jax.random.key(seed)"
            )
        return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)

    def process(
        self,
        logits: Float[Array, "B vocab"],
        history: TokenHistory | None,
        position: Int32[Array, "B"],
    ) -> Float[Array, "B vocab"]:
        """The logits that a token is chosen from, in the order of transformers."""
        if self.needs_history and history is None:
            raise ValueError(
                "these sampling settings look back at the tokens so far: DecodeState.history is "
                "needed, see TokenHistory.of_prompts"
            )
        if self.biases:
            logits = processors.add_sequence_bias(logits, history, self.biases)
        if history is not None:
            logits = self._look_back(logits, history)
        if self.min_length is not None:
            logits = processors.ban(logits, self.stop_tokens, position < self.min_length)
        if self.min_new_tokens is not None and history is not None:
            early = history.emitted < self.min_new_tokens
            logits = processors.ban(logits, self.stop_tokens, early)
        if self.forced_bos:
            logits = processors.force(logits, self.forced_bos, position == 1)
        if self.forced_eos and history is not None:
            last = history.emitted == history.max_new_tokens - 1
            logits = processors.force(logits, self.forced_eos, last)
        if self.suppressed:
            logits = processors.ban(logits, self.suppressed)
        if self.suppressed_first and history is not None:
            logits = processors.ban(logits, self.suppressed_first, history.emitted == 0)
        return logits if self.temperature is None else self._narrow(logits, self.temperature)

    def _look_back(
        self, logits: Float[Array, "B vocab"], history: TokenHistory
    ) -> Float[Array, "B vocab"]:
        if self.repetition_penalty is not None:
            logits = processors.penalize_repetition(logits, history, self.repetition_penalty)
        if self.no_repeat_ngram_size is not None:
            logits = processors.ban_repeated_ngrams(logits, history, self.no_repeat_ngram_size)
        return logits

    def _narrow(
        self, logits: Float[Array, "B vocab"], temperature: Float[Array, ""]
    ) -> Float[Array, "B vocab"]:
        logits = processors.divide_by_temperature(logits, temperature)
        for keep, number in (
            (processors.keep_top_k, self.top_k),
            (processors.keep_top_p, self.rest),
            (processors.keep_min_p, self.min_p),
            (processors.keep_typical, self.typical_p),
            (processors.keep_above_epsilon, self.epsilon_cutoff),
            (processors.keep_above_eta, self.eta_cutoff),
        ):
            if number is not None:
                logits = keep(logits, number)
        return logits
