"""Files of `vkq bench`, changed by hand: joined, or one clear line and nothing written."""

import copy
import json
import random
from pathlib import Path

import pytest

from tests.hostile.conftest import run
from tests.hostile.test_eval_data import spoil
from vkq_apps.bench.tables import throughput_table
from vkq_apps.cli.bench_output import show
from vkq_apps.files.results_file import ResultsFile

FILE = Path(__file__).parents[2] / "results" / "throughput.json"


@pytest.fixture(scope="module")
def record():
    found = json.loads(FILE.read_text())
    return found | {"rows": found["rows"][:6]}


def test_any_change_of_a_file_to_join(cases, capsys, monkeypatch, tmp_path, record):
    monkeypatch.chdir(tmp_path)
    for case in cases(8):
        changed = spoil(random.Random(f"bench files/{case}"), record)
        Path("rows.json").write_text(json.dumps(changed))
        code, _ = run(capsys, ["bench", "join", "rows.json", "--out", f"{case}.json"])
        assert code in (0, 2)
        assert Path(f"{case}.json").exists() == (code == 0)


def test_rows_that_the_command_does_not_write(capsys, monkeypatch, tmp_path, record):
    monkeypatch.chdir(tmp_path)
    changed = copy.deepcopy(record)
    next(row for row in changed["rows"] if row["status"] == "measured")["budget_gb"] = "x"
    Path("rows.json").write_text(json.dumps(changed))
    code, err = run(capsys, ["bench", "join", "rows.json", "--out", "out.json"])
    assert code == 2
    assert "rows.json: expected rows as `vkq bench throughput` writes them, got others: " in err
    # Rows that `--resume` keeps are shown, too.
    results = ResultsFile(None, {**changed, "time": "now"})
    results.rows = changed["rows"]
    with pytest.raises(ValueError, match="expected rows as `vkq bench throughput` writes them"):
        show(results, throughput_table, json=False)
