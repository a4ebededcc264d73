"""Answers from coded caches against the truth and against those at full precision."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import models
import vkq_jax
from models import Inputs, Model
from models.generate import QuantizeAt
from vkq_apps.training.heldout import Question

__all__ = ["Score", "answer_all", "in_batches", "score"]


@dataclasses.dataclass(frozen=True)
class Score:
    """How one preset did on one set of questions.

    Attributes:
        exact: share of answers equal to the truth. agreement: share equal to full precision's.
        questions: number of questions.
    """

    exact: float
    agreement: float
    questions: int


def answer_all(
    model: Model,
    questions: Sequence[Question],
    quant: str,
    *,
    quantize_at: QuantizeAt,
    score_map: vkq_jax.ScoreMap | None = None,
    max_new_tokens: int = 40,
    batch_size: int = 16,
    on_batch: Callable[[int], None] = lambda done: None,
) -> tuple[list[str], vkq_jax.CacheBytes]:
    """Greedy, free-running answers to all questions, and the bytes of the last batch's cache.

    The last batch is filled up with its first question, so that all batches share a compilation.
    """
    answers: list[str] = []
    nbytes = None
    for start in range(0, len(questions), batch_size):
        asked = questions[start : start + batch_size]
        filled = [*asked, *[asked[0]] * (batch_size - len(asked))]
        generation = models.generate(
            model,
            _prepare(model, filled),
            quant=quant,
            max_new_tokens=max_new_tokens,
            quantize_at=quantize_at,
            score_map=score_map,
        )
        texts = models.decode(model, generation.tokens, generation.lengths)
        answers += [text.strip() for text in texts[: len(asked)]]
        nbytes = vkq_jax.cache_nbytes(generation.cache)
        on_batch(len(asked))
    if nbytes is None:
        raise ValueError("no questions to answer")
    return answers, nbytes


def in_batches(
    model: Model, questions: Sequence[Question], batch_size: int = 16
) -> Iterator[Inputs]:
    """All questions, each once, as `models.calibrate_scores` takes them."""
    for batch in itertools.batched(questions, batch_size):
        yield _prepare(model, batch)


def _prepare(model: Model, questions: Sequence[Question]) -> Inputs:
    """One batch, padded to lengths that others share."""
    inputs = models.prepare(
        model,
        images=[question.image for question in questions],
        prompts=[models.chat_prompt(model, question.question) for question in questions],
    )
    return models.pad_to_multiple(inputs, 32)


def score(answers: Sequence[str], truth: Sequence[str], exact: Sequence[str]) -> Score:
    """Compares answers with the truth and with the answers at full precision."""
    count = len(answers)
    return Score(
        exact=sum(a == t for a, t in zip(answers, truth, strict=True)) / count,
        agreement=sum(a == e for a, e in zip(answers, exact, strict=True)) / count,
        questions=count,
    )
