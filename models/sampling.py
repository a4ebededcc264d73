"""How the next token is chosen: settings of a checkpoint, and those of a call, which win."""

import dataclasses
import numbers
from typing import Any, Self, TypeGuard

from vkq_jax.messages import show
from vkq_jax.validation import as_items

__all__ = ["Sampling", "is_integer"]

type TokenIds = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, by transformers' names and in transformers' order.

    A setting that is None is the checkpoint's own, from its generation_config.json, and is left
    out where the checkpoint has none. The value in brackets switches a setting off, whatever the
    checkpoint says. Without a temperature tokens are chosen greedily, unless the checkpoint says
    `do_sample` (its `temperature`, or 1, then counts, and its `top_k`, or 50 as in transformers).
    `models.generate` says what a missing PRNG key means.

    Each step applies, in this order: `sequence_bias`, `repetition_penalty`,
    `no_repeat_ngram_size`, `bad_words_ids`, `min_length`, `min_new_tokens`,
    `forced_bos_token_id`, `forced_eos_token_id`, `suppress_tokens`, `begin_suppress_tokens`; where
    tokens are drawn at random also `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`,
    `epsilon_cutoff` and `eta_cutoff`. Padding is no token of a prompt; image tokens are.

    Attributes:
        temperature: divides the logits [0: greedy].
        top_k: keeps the k most probable tokens [0].
        top_p: keeps the smallest set of most probable tokens whose probability reaches this
            (nucleus sampling, arXiv 1904.09751) [1].
        min_p: keeps tokens at least this times as probable as the most probable one [0].
        typical_p: keeps the tokens whose surprise is closest to the entropy, up to this
            probability (arXiv 2202.00666) [1].
        epsilon_cutoff, eta_cutoff: keep tokens above an absolute probability, or one that falls
            with the entropy (arXiv 2210.15191); the most probable token always stays [0].
        repetition_penalty: divides positive logits of tokens that the prompt or the answer holds,
            and multiplies negative ones [1].
        no_repeat_ngram_size: no run of this many tokens occurs twice [0].
        bad_words_ids: runs of tokens that are never emitted; a stop token alone is left out [()].
        sequence_bias: pairs of a run of tokens and what is added to the logit of its last one
            after the others [()].
        suppress_tokens: tokens that are never emitted [()].
        begin_suppress_tokens: tokens that are not the first one of an answer [()].
        forced_bos_token_id: the token that follows a prompt of a single token [()].
        forced_eos_token_id: the last of `max_new_tokens` tokens; one of them if several [()].
        min_length: no stop token before prompt and answer have this many tokens [0].
        min_new_tokens: no stop token before the answer has this many; takes the place of
            `min_length` [0].
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words_ids: tuple[TokenIds, ...] | None = None
    sequence_bias: tuple[tuple[TokenIds, float], ...] | None = None
    suppress_tokens: TokenIds | None = None
    begin_suppress_tokens: TokenIds | None = None
    forced_bos_token_id: int | TokenIds | None = None
    forced_eos_token_id: int | TokenIds | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None

    def __post_init__(self) -> None:
        """Checks types and ranges; lists become tuples, a single forced token a tuple of one.

        Raises:
            ValueError: a value of a wrong type or outside its range.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _check(field.name, value))
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced: Any = getattr(self, name) or ()
            if name == "forced_bos_token_id" and len(forced) > 1:
                raise ValueError(f"{name}: expected one token, got {show(forced)}")
            if forced and set(forced) <= set(self.suppress_tokens or ()):
                raise ValueError(
                    f"{name}: every token in it is in suppress_tokens, too: {show(forced)}"
                )

    @property
    def greedy(self) -> bool:
        """Whether no randomness is involved (and no PRNG key needed)."""
        return not self.temperature

    @property
    def narrows(self) -> tuple[str, ...]:
        """Names of the settings that are set, not off, and count for random draws only."""
        return tuple(
            name for name, off in _OFF_WHEN_DRAWN.items() if getattr(self, name) not in (None, off)
        )

    def over(self, defaults: Self) -> Self:
        """These settings, and those of `defaults` where these are None."""
        own = {k: v for k, v in vars(self).items() if v is not None}
        return dataclasses.replace(defaults, **own)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError for a token that a model of `vocab_size` tokens cannot emit.

        Suppressing such a token, which changes nothing, is no error.
        """
        runs = {
            "bad_words_ids": self.bad_words_ids or (),
            "sequence_bias": tuple(run for run, _ in self.sequence_bias or ()),
            "forced_bos_token_id": (self.forced_bos_token_id or (),),
            "forced_eos_token_id": (self.forced_eos_token_id or (),),
        }
        for name, tokens in runs.items():
            for token in (token for run in tokens for token in run):  # type: ignore[union-attr]
                if token >= vocab_size:
                    raise ValueError(f"{name}: expected tokens in [0, {vocab_size}), got {token}")


_OFF_WHEN_DRAWN = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_COUNTS = ("top_k", "no_repeat_ngram_size", "min_length", "min_new_tokens")
_PROBABILITIES = ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_POSITIVE = ("typical_p", "repetition_penalty")
_LARGEST_COUNT = 2**31 - 1
_LARGEST_NUMBER = 3e38  # of float32


def _check(name: str, value: Any) -> Any:
    """The value in its canonical form."""
    if name in _COUNTS:
        return _check_count(name, value)
    if name == "sequence_bias":
        return tuple(_check_bias(name, pair) for pair in _items(name, value))
    if name == "bad_words_ids":
        return tuple(_check_run(name, run) for run in _items(name, value))
    if name in ("forced_bos_token_id", "forced_eos_token_id") and is_integer(value):
        value = (value,)
    if name.endswith(("tokens", "token_id")):
        return tuple(_check_token(name, token) for token in _items(name, value))
    low = "above 0" if name in _POSITIVE else "at least 0"
    high = " and at most 1" if name in _PROBABILITIES else ""
    number = _check_number(name, value)
    above = number > 0 if name in _POSITIVE else number >= 0
    if not above or (high and number > 1):
        raise ValueError(f"{name} must be {low}{high}, got {show(value)}")
    return number


def _check_number(name: str, value: Any) -> float:
    if not _is_number(value) or not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
        raise ValueError(f"{name}: expected a finite number, got {show(value)}")
    return float(value)


def _check_count(name: str, value: Any) -> int:
    if not is_integer(value) or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(
            f"{name} must be an integer from 0 (off) to {_LARGEST_COUNT}, got {show(value)}"
        )
    return int(value)


def _check_token(name: str, value: Any) -> int:
    if not is_integer(value) or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"{name}: expected token ids, integers from 0, got {show(value)}")
    return int(value)


def _check_run(name: str, value: Any) -> TokenIds:
    run = tuple(_check_token(name, token) for token in _items(name, value))
    if not run:
        raise ValueError(f"{name}: expected runs of at least one token, got an empty one")
    return run


def _check_bias(name: str, pair: Any) -> tuple[TokenIds, float]:
    pair = _items(name, pair)
    if len(pair) != 2:
        raise ValueError(f"{name}: expected pairs of token ids and a bias, got {show(pair)}")
    return _check_run(name, pair[0]), _check_number(name, pair[1])


def _items(name: str, value: Any) -> tuple[Any, ...]:
    items = as_items(value)
    if items is None:
        raise ValueError(f"{name}: expected a list, got {show(value)}")
    return items


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether it is an integer of Python or NumPy, no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
