"""Metrics, against the examples that papers and official tools publish."""

import numpy as np
import pytest

from vkq_apps.evals.metrics import METRICS
from vkq_apps.evals.metrics.caption import bleu4, cider
from vkq_apps.evals.metrics.relaxed import is_nearly
from vkq_apps.evals.metrics.text import (
    OCRBENCH,
    anls,
    character_error_rate,
    contains,
    is_exact,
    is_exact_ignoring_case,
)
from vkq_apps.evals.metrics.vqa import normalize, vqa_accuracy
from vkq_apps.evals.metrics.yes_no import MME, POPE, verdict
from vkq_apps.evals.samples import Sample

REFERENCES = [
    ["a cat sits on a mat", "the cat is on the mat", "a cat resting on a small rug"],
    ["two dogs play in the park", "dogs running through green grass"],
    ["a red bus on a busy street", "a double decker bus drives down the street", "the bus is red"],
]
CAPTIONS = ["a cat is on the mat", "two dogs run in the grass", "a red car on the street street"]

CIDER = [4.020927242, 1.743103558, 0.998771864]
BLEU4 = 0.384524664


def sample(*answers, picture="p", part=""):
    return Sample("key", picture, list, "question?", answers, part=part)


def test_exact_match_sees_words_and_not_white_space():
    assert is_exact(" Two  dogs\n", ["Two dogs"])
    assert not is_exact("two dogs", ["Two dogs"])
    assert is_exact_ignoring_case("two dogs.", ["no", "Two dogs"])


def test_an_empty_right_answer_is_contained_in_an_empty_answer_alone():
    assert contains("no Cafe here", ["bar", "cafe"])
    assert not contains("no cafe here", ["bar", ""])
    assert contains(" ", ["bar", ""])


def test_anls_is_that_of_the_paper():
    # ST-VQA's definition: 1 - edits / longer length, and 0 where that is 0.5 or less.
    assert anls("coca cola", ["Coca Cola", "Coca Cola Company"]) == 1.0
    assert anls("coca cola company", ["coca cola"]) == pytest.approx(1 - 8 / 17)
    assert anls("abcd", ["wxyz"]) == 0.0
    assert anls("abcd", ["abyz"]) == 0.0


def test_character_error_rate_counts_edits_over_the_reference():
    assert character_error_rate("kitten", ["sitting"]) == pytest.approx(3 / 7)
    assert character_error_rate("aaaa", ["a", "aab"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "right", "near"),
    [
        ("10.4", "10", True),
        ("10.6", "10", False),
        ("9.5", "10", True),
        ("0.05", "5%", True),
        ("-104", "-100", True),
        ("0", "0", True),
        ("0.001", "0", False),
        ("Blue", "blue", True),
        ("blue", "red", False),
        ("2010", "2014", True),
        ("5", "Infinity", False),
        ("nan", "NaN", True),
    ],
)
def test_relaxed_accuracy_allows_five_percent_of_numbers(answer, right, near):
    assert is_nearly(answer, [right]) is near


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Two dogs, don't know.", "2 dogs don't know"),
        ("1,000", "1000"),
        ("a blue/green car", "blue green car"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("3.5", "3.5"),
        ("none", "0"),
        ("  the\tend ", "end"),
    ],
)
def test_vqa_answers_are_normalized_as_the_official_tool_does(answer, plain):
    assert normalize(answer) == plain


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_of_ten_people(agreeing, accuracy):
    # The values that the leave-one-out average of min(n / 3, 1) is known for.
    people = ["Two"] * agreeing + [f"other{i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("2", people) == pytest.approx(accuracy)


def test_cider_and_bleu_equal_coco_caption():
    # pycocoevalcap 1.2 on the same words (punctuation and clitics apart it tokenizes alike).
    np.testing.assert_allclose(cider(CAPTIONS, REFERENCES), CIDER, rtol=1e-6)
    assert bleu4(CAPTIONS, REFERENCES) == pytest.approx(BLEU4, rel=1e-6)


def test_ocrbench_compares_formulas_without_spaces():
    formula = "Handwritten Mathematical Expression Recognition"
    samples = [sample("x ^ 2", part=formula), sample("x ^ 2"), sample("CAFE")]
    assert OCRBENCH.scores(["y = x^2", "y = x^2", "the cafe"], samples) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [("Yes, it is.", "yes"), ("No.", "no"), ("There is not", "no"), ("nothing", ""), ("", "")],
)
def test_verdicts(answer, said):
    assert verdict(answer) == said


def test_mme_counts_pictures_with_all_questions_right():
    samples = [sample("yes", picture="a"), sample("no", picture="a"), sample("yes", picture="b")]
    answers = ["yes", "yes", "Yes"]
    assert MME.scores(answers, samples) == [1.0, 0.0, 1.0]
    assert MME.overall["accuracy_plus"](answers, samples) == 0.5


def test_pope_has_precision_recall_and_f1():
    samples = [sample("yes"), sample("yes"), sample("no"), sample("no")]
    answers = ["yes", "no", "yes", "no"]
    figures = {name: figure(answers, samples) for name, figure in POPE.overall.items()}
    assert figures == {"precision": 0.5, "recall": 0.5, "f1": 0.5}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_a_right_answer_full_marks(name):
    words = [f"one{i} two three four five" for i in range(3)]
    metric = METRICS[name]
    scores = metric.scores(words, [sample(word) for word in words])
    assert scores == [pytest.approx(10.0 if name == "cider" else 1.0)] * 3
    wrong = metric.scores(["zzz"] * 3, [sample(word) for word in words])
    assert max(wrong) < 0.2
