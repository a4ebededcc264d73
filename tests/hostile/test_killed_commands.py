"""Commands that are killed at any moment: `--resume` ends with what an uninterrupted run writes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.ci

BENCH = ["vkq_apps.cli.main", "bench", "quantize", "--shape", "tiny", "--repeats", "1"]
BENCH += ["--quant", "signs-1bit,quantile-1bit,minmax-8bit", "--out", "rows.json"]
TRAIN = ["vkq_apps.training", "--smoke", "--out", "run", "--save-every", "0"]
CALIBRATE = ["tests.support.small_calibration", "--out", "tables"]


def rows(folder):
    """All but times and what the machine was doing."""
    found = json.loads((folder / "rows.json").read_text())
    assert found["left_out"] == []
    return [(row["preset"], row["status"]) for row in found["rows"]]


def weights(folder):
    return (folder / "run" / "state.safetensors").read_bytes()


def tables(folder):
    """The digest of all arrays and settings; the order of a header's names is drawn by chance."""
    with safe_open(folder / "tables", framework="np") as file:
        return file.metadata()["sha256"]


# Each command has its arguments, the function that reads what is compared, and the files it leaves.
COMMANDS = {
    "bench": (BENCH, rows, ["rows.json"]),
    "training": (TRAIN, weights, ["log.jsonl", "run", "state.safetensors"]),
    "calibrate": (CALIBRATE, tables, ["tables"]),
}


def start(command, folder):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(command, folder):
    process = start(command, folder)
    _, err = process.communicate(timeout=500)
    return process.returncode, err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_that_is_killed_goes_on(cases, tmp_path, name):
    command, read, left = COMMANDS[name]
    (tmp_path / "whole").mkdir()
    began = time.monotonic()
    code, err = finish(command, tmp_path / "whole")
    assert code == 0, err
    seconds = time.monotonic() - began
    expected = read(tmp_path / "whole")
    for case in cases(1):
        rng, folder = random.Random(f"killed {name}/{case}"), tmp_path / str(case)
        folder.mkdir()
        for number in range(2):
            process = start([*command, *resuming(name, folder, number)], folder)
            time.sleep(seconds * rng.uniform(0.3, 0.9))
            os.killpg(process.pid, signal.SIGKILL)
            err = process.communicate()[1]
            assert "Traceback" not in err, err
            assert " error: " not in err, err
        code, err = finish([*command, *resuming(name, folder, 2)], folder)
        assert code == 0, err
        assert read(folder) == expected
        assert {path.name for path in folder.rglob("*")} <= set(left)


def resuming(name, folder, number):
    """Options of a run after `number` killed ones."""
    if name == "training":  # before its first state was saved it has nothing to go on from
        return ["--resume"] * (folder / "run" / "state.safetensors").exists()
    return ["--resume"] * bool(number)
