"""Presets are added to results of a finished run, and to no others."""

import json
import math
import os
from pathlib import Path

import pytest

from vkq_apps.evals.finished import FinishedRun
from vkq_apps.evals.join import join, main
from vkq_apps.files import text_files

MARKS = {"seed": 3, "weights": "w", "codes": {"none": "n", "a": "1", "b": "2"}}


def row(exact: float) -> dict:
    figures = {"samples": 2, "exact": exact, "lost": 0.0, "lost_interval": [0.0, 0.0], "kl": 0.0}
    figures["agreement"] = 1.0
    return {
        "bits_per_element": {"mean": 1.0},
        "visual_kv_reduction": 0.9,
        "tasks": {"text": figures, "all": figures.copy()},
    }


@pytest.fixture
def path(tmp_path):
    presets = {"none": row(0.9), "a": row(0.8), "b": row(0.7)}
    return results(tmp_path, "results", presets, marks=MARKS)


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


@pytest.mark.parametrize("wrong", [None, "x", [], {}, math.nan, 10**400])
@pytest.mark.parametrize(
    "place",
    [
        ("tasks",),
        ("tasks", "all"),
        ("tasks", "text", "exact"),
        ("tasks", "all", "lost_interval"),
        ("bits_per_element",),
        ("visual_kv_reduction",),
    ],
)
def test_rows_that_lack_figures_are_no_results(path, place, wrong):
    record = json.loads(path.read_text())
    part = record["presets"]["a"]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = wrong
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="expected results of `vkq eval`"):
        FinishedRun(path, MARKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["presets"].pop("none"), "it lacks 'none'"),
        (lambda record: record.pop("seconds"), "it lacks 'seconds'"),
        (lambda record: record.update(seconds=10**400), "in /"),
        (lambda record: record.update(seconds="x"), "in /"),
    ],
)
def test_what_is_needed_at_the_end_is_checked_before_anything_is_asked(path, change, message):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"expected results of `vkq eval` .*{message}"):
        FinishedRun(path, MARKS)


@pytest.mark.parametrize("place", ["pipe", "/dev/zero"])
def test_what_never_ends_is_no_file_of_results(tmp_path, monkeypatch, place):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(text_files, "_WAIT", 0.1)
    with pytest.raises(ValueError, match="expected results of `vkq eval`"):
        FinishedRun(tmp_path / place, MARKS)


def results(folder, name: str, rows: dict, **others) -> Path:
    marks = MARKS | {"codes": dict.fromkeys(rows, name)}
    record = {"marks": marks, "presets": rows, "quantize_at": "image", "versions": {"jax": "1"}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**record, "offline_table_bytes": {}, "seconds": 2.0, **others}))
    return path


def test_presets_asked_apart_stand_in_one_file(tmp_path):
    one = results(tmp_path, "one", {"none": row(0.9), "a": row(0.8)})
    two = results(tmp_path, "two", {"none": row(0.9), "b": row(0.7)}, offline_table_bytes={"b": 5})
    joined = join([one, two])
    assert list(joined["presets"]) == joined["quant"] == ["none", "a", "b"]
    assert joined["marks"]["codes"] == {"none": "two", "a": "one", "b": "two"}
    assert joined["presets"]["b"] == row(0.7)
    assert (joined["seconds"], joined["offline_table_bytes"], joined["joined"]) == (4, {"b": 5}, 2)


@pytest.mark.parametrize(
    ("rows", "others", "message"),
    [
        ({"none": row(0.9), "a": row(0.7)}, {}, "presets that no earlier file has, got 'a'"),
        ({"none": row(0.8), "b": row(0.7)}, {}, "full precision has other figures"),
        ({"none": row(0.9)}, {"marks": MARKS | {"seed": 4}}, "made with other settings: seed"),
        ({"none": row(0.9)}, {"versions": {"jax": "2"}}, "expected the versions of"),
        ({"a": row(0.9)}, {}, "it lacks 'none'"),
        ({"none": row(0.9)}, {"presets": []}, "expected results of `vkq eval`"),
    ],
)
def test_files_that_do_not_belong_together_are_one_clear_error(
    tmp_path, capsys, rows, others, message
):
    one = results(tmp_path, "one", {"none": row(0.9), "a": row(0.8)})
    two = results(tmp_path, "two", rows, **others)
    assert main(["--out", str(tmp_path / "all.json"), str(one), str(two)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error) < 400
    assert not (tmp_path / "all.json").exists()


def test_joined_results_take_the_place_of_no_other_file(tmp_path, capsys):
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    one = results(tmp_path, "one", {"none": row(0.9)})
    assert main(["--out", str(other), str(one)]) == 2
    assert "is no output of `vkq eval`" in capsys.readouterr().err
    assert other.read_text() == "{}"
