"""Captions: CIDEr-D (arXiv 1411.5726) and BLEU-4, as COCO's evaluation has them.

COCO tokenizes with Stanford's PTB tokenizer in Java and then drops punctuation; here captions are
lower-cased and split into words, which differs for clitics such as "man's" only.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import sacrebleu

from vkq_apps.evals.metrics.metric import Metric
from vkq_apps.evals.metrics.text import is_exact_ignoring_case
from vkq_apps.evals.samples import Sample

__all__ = ["CIDER", "bleu4", "cider"]

_MAX_N = 4
_SIGMA = 6.0

type Grams = Counter[tuple[str, ...]]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption; document frequencies from the references of all pictures given."""
    known = [[_grams(text) for text in texts] for texts in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for texts in known:
        frequency.update({gram for grams in texts for gram in grams})
    log_pictures = math.log(max(len(known), 1))

    def weigh(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        """TF-IDF weights by length of the n-gram."""
        weighed: list[dict[tuple[str, ...], float]] = [{} for _ in range(_MAX_N)]
        for gram, count in grams.items():
            rarity = log_pictures - math.log(max(1, frequency[gram]))
            weighed[len(gram) - 1][gram] = count * rarity
        return weighed

    scores = []
    for caption, texts in zip(captions, known, strict=True):
        own = _grams(caption)
        each = [_similarity(own, weigh(own), other, weigh(other)) for other in texts]
        scores.append(10 * sum(each) / len(each))
    return scores


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of up to 4-grams over all captions together, 0 to 1, without smoothing."""
    most = max(map(len, references))
    streams = [
        [" ".join(_words(texts[place])) if place < len(texts) else None for texts in references]
        for place in range(most)
    ]
    hypotheses = [" ".join(_words(caption)) for caption in captions]
    score = sacrebleu.corpus_bleu(
        hypotheses,
        streams,  # type: ignore[arg-type]  # None stands for a reference that there is not
        tokenize="none",
        smooth_method="none",
    )
    return score.score / 100


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _grams(text: str) -> Grams:
    words = _words(text)
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, _MAX_N + 1)
        for start in range(len(words) - n + 1)
    )


def _similarity(own: Grams, own_weights: list, other: Grams, other_weights: list) -> float:
    """Mean cosine over n of clipped weights, times a penalty for different lengths."""
    lengths = [sum(n for gram, n in grams.items() if len(gram) == 2) for grams in (own, other)]
    penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * _SIGMA**2))
    total = 0.0
    for mine, theirs in zip(own_weights, other_weights, strict=True):
        product = sum(
            min(mine[gram], theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram in mine
        )
        norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        total += product / norm if norm else 0.0
    return penalty * total / _MAX_N


def _scores(answers: Sequence[str], samples: Sequence[Sample]) -> list[float]:
    return cider(answers, [sample.answers for sample in samples])


def _bleu4(answers: Sequence[str], samples: Sequence[Sample]) -> float:
    return bleu4(answers, [sample.answers for sample in samples])


CIDER = Metric("cider", _scores, is_exact_ignoring_case, overall={"bleu4": _bleu4})
