"""VQA accuracy: agreement with ten people (arXiv 1505.00468), and GQA's exact match.

Both sides are normalized as the official evaluation does: numbers as digits, no articles, no
punctuation, contractions with their apostrophes.
"""

import itertools
import re
from collections.abc import Sequence

from vkq_apps.evals.metrics.metric import Metric, of_each

__all__ = ["GQA", "VQA", "normalize", "vqa_accuracy"]

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's
ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at
shan't she'd've she's should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's
there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd
who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_apostrophes(word: str) -> list[str]:
    """The word with every choice of its apostrophes left out."""
    pieces = word.split("'")
    choices = itertools.product(("", "'"), repeat=len(pieces) - 1)
    return [
        pieces[0] + "".join(mark + piece for mark, piece in zip(marks, pieces[1:], strict=True))
        for marks in choices
    ]


_FULL = {short: word for word in _CONTRACTIONS.split() for short in _without_apostrophes(word)}


def normalize(answer: str) -> str:
    """An answer as the official evaluation compares it."""
    text = " ".join(answer.split())
    numeric = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        # A mark at a word's edge, or a comma in a number, vanishes; one inside a word parts it.
        edge = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if edge or numeric else " ")
    plain = _PERIOD.sub("", plain)
    words = (_DIGITS.get(word, word) for word in plain.lower().split())
    return " ".join(_FULL.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Mean over the people left out one by one: min(1, how many others gave this answer / 3).

    With one right answer only, whether it is that.
    """
    given, people = normalize(answer), [normalize(right) for right in answers]
    if len(people) == 1:
        return float(given == people[0])
    same = people.count(given)
    # Leaving out one who agrees leaves one fewer.
    agreeing = min(1.0, max(0, same - 1) / 3)
    others = min(1.0, same / 3)
    return (same * agreeing + (len(people) - same) * others) / len(people)


def is_any(answer: str, answers: Sequence[str]) -> bool:
    """Whether it is one of the answers, both normalized."""
    return normalize(answer) in {normalize(right) for right in answers}


VQA = Metric("vqa_accuracy", of_each(vqa_accuracy), is_any)
GQA = Metric("exact", of_each(is_any), is_any)
