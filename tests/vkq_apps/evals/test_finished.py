"""Presets are added to results of a finished run, and to no others."""

import json

import pytest

from vkq_apps.evals.finished import FinishedRun

MARKS = {"seed": 3, "weights": "w", "codes": {"none": "n", "a": "1", "b": "2"}}


def row(exact: float) -> dict:
    return {"tasks": {"text": {"exact": exact}, "all": {"exact": exact}}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.json"
    presets = {"none": row(0.9), "a": row(0.8), "b": row(0.7)}
    path.write_text(json.dumps({"marks": MARKS, "presets": presets}))
    return path


def test_presets_of_the_same_codes_are_known(path):
    run = FinishedRun(path, MARKS | {"codes": {"none": "n", "a": "1", "b": "changed", "c": "3"}})
    assert run.known == {"none", "a"}
    new = {"none": row(0.9), "b": row(0.6), "c": row(0.5)}
    joined = run.join(new, ["none", "c", "a", "b"], "none")
    assert list(joined) == ["none", "c", "a", "b"]
    assert [one["tasks"]["all"]["exact"] for one in joined.values()] == [0.9, 0.5, 0.8, 0.6]


def test_a_file_that_has_all_is_left_alone(path):
    assert FinishedRun(path, MARKS).has(["none", "a", "b"])
    assert not FinishedRun(path, MARKS).has(["none", "b", "a"])
    changed = MARKS["codes"] | {"b": "changed"}
    assert not FinishedRun(path, MARKS | {"codes": changed}).has(["none", "a", "b"])


def test_full_precision_with_other_answers_is_refused(path):
    with pytest.raises(ValueError, match="full precision has other answers"):
        FinishedRun(path, MARKS).join({"none": row(0.8)}, ["none"], "none")


def test_results_of_other_questions_are_refused(path):
    with pytest.raises(ValueError, match="made with other settings: seed is '3' there and '4'"):
        FinishedRun(path, MARKS | {"seed": 4})
    for content in ("{}", "[]", "nothing"):
        path.write_text(content)
        with pytest.raises(ValueError, match="expected results of `vkq eval`"):
            FinishedRun(path, MARKS)
