"""The log of samples: kept through a kill, refused for other settings."""

import dataclasses
import signal
import subprocess
import sys

import pytest

from vkq_apps.evals.records import Record, SampleLog

HEAD = {"seed": 1, "tasks": ["text"]}
RECORD = Record("none", "text", "0", "naïve", 3, 0.25, None, 16.0, 16.0, 8, 32)


def numbered(number):
    return dataclasses.replace(RECORD, sample=str(number))


def test_records_come_back(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    log = SampleLog(path, HEAD)
    log.add([numbered(0), numbered(1)])
    again = SampleLog(path, HEAD, resume=True)
    assert again.get("none", "text", "1") == numbered(1)
    assert again.get("none", "text", "2") is None
    again.add([numbered(2)])
    assert SampleLog(path, HEAD, resume=True).get("none", "text", "2") == numbered(2)


def test_without_resume_a_log_starts_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    SampleLog(path, HEAD).add([RECORD])
    assert SampleLog(path, HEAD).get("none", "text", "0") is None


def test_a_line_that_was_cut_off_does_not_count(tmp_path):
    path = tmp_path / "log.jsonl"
    SampleLog(path, HEAD).add([numbered(0), numbered(1)])
    path.write_bytes(path.read_bytes()[:-9])
    log = SampleLog(path, HEAD, resume=True)
    assert log.get("none", "text", "0") is not None
    assert log.get("none", "text", "1") is None
    log.add([numbered(1)])
    assert SampleLog(path, HEAD, resume=True).get("none", "text", "1") == numbered(1)


def test_a_log_cut_off_in_its_first_line_is_an_empty_one(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"seed": 1, "ta')
    SampleLog(path, HEAD, resume=True).add([RECORD])
    assert SampleLog(path, HEAD, resume=True).get("none", "text", "0") == RECORD


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "log.jsonl"
    SampleLog(path, HEAD)
    with pytest.raises(ValueError, match="seed is '1' there and '2' here") as caught:
        SampleLog(path, {**HEAD, "seed": 2}, resume=True)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("line", ["{]", "[1]", '{"preset": "none"}', '{"other": 1}'])
def test_a_foreign_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    SampleLog(path, HEAD)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"log.jsonl:2: expected a"):
        SampleLog(path, HEAD, resume=True)


WRITER = """
import sys
from vkq_apps.evals.records import Record, SampleLog
from pathlib import Path
log = SampleLog(Path(sys.argv[1]), {"seed": 1, "tasks": ["text"]})
for number in range(10**9):
    log.add([Record("none", "text", str(number), "a" * 5000, 3, 0.25, None, 16.0, 16.0, 8, 32)])
    print(number, flush=True)
"""


def test_what_was_added_outlasts_a_kill(tmp_path):
    path = tmp_path / "log.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        last = [int(writer.stdout.readline()) for _ in range(20)][-1]
        for resume in (True, False):
            with pytest.raises(ValueError, match="is being written by another `vkq eval`"):
                SampleLog(path, HEAD, resume=resume)
        writer.send_signal(signal.SIGKILL)
    log = SampleLog(path, HEAD, resume=True)
    assert all(log.get("none", "text", str(number)) for number in range(last + 1))
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines)) >= last + 2
