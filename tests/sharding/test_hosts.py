"""Two processes of four devices each are one mesh of eight."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import models
import vkq_jax
from models.calibration import codes as code_calibration
from tests.sharding.cases import RIVALS, assert_same, inputs_of
from vkq_apps.cli.main import main
from vkq_apps.evals.records import log_path

PICTURE = Path(__file__).parents[2] / "examples/pictures/receipt.png"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


class Said(NamedTuple):
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str


def on_two_hosts(*command: str, devices: int = 4, codes: tuple[int, int] = (0, 0)) -> list[Said]:
    """Runs two processes with so many devices each, which share a mesh of all."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    address = f"localhost:{free_port()}"
    processes = []
    for number in range(2):
        environment = os.environ | {
            "XLA_FLAGS": flags,
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=Path(__file__).parents[2],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = [process.communicate(timeout=300) for process in processes]
    said = [Said(p.returncode, *texts) for p, texts in zip(processes, found, strict=True)]
    assert tuple(one.code for one in said) == codes, [one.err[-4000:] for one in said]
    return said


@pytest.mark.mesh
@pytest.mark.parametrize("mesh", ["data=2,model=4", "model=8"])
def test_two_processes_answer_as_one(cases, monkeypatch, tmp_path, mesh):
    name = "8 KV heads"
    one = cases.generation(name, None, "signs-1bit")
    on_two_hosts("tests.sharding.two_hosts", str(cases.folder / name), mesh, str(tmp_path))
    results = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    for result in results:
        assert result["devices"] == [8, 4]
        np.testing.assert_array_equal(result["tokens"], one.tokens)
        # Each host reads the parts of its own devices: a part once, all parts or half of them.
        whole = 32 * 32
        assert sum(result["read"]) == (whole if mesh.startswith("data") else whole // 2)
    assert_same(vkq_jax.load_cache(tmp_path / "cache"), one.cache)
    assert results[0].get("tables") == results[1].get("tables")
    if mesh.startswith("data"):  # the program calibrates on these
        model = cases.model(name)
        expected = models.calibrate_scores(model, [inputs_of(model)], max_new_tokens=2)
        monkeypatch.setattr(code_calibration, "calibrated_presets", {"vkq-1bit": RIVALS})
        codes = models.calibrate_codes(model, [inputs_of(model)], max_new_tokens=2, tokens=64)
        for result in results:
            # Sums in another order move a sample between two centroids here and there.
            codebook = np.float32(codes.presets[0].tables.key.codebook)
            moved = np.abs(result["codebook"] - codebook).max(-1) > 1e-2
            assert moved.mean() < 0.05
            np.testing.assert_allclose(result["slope"], expected.slope, atol=1e-4)


@pytest.mark.mesh
def test_two_processes_measure_a_row_together():
    setup = {
        "shape": "tiny",
        "preset": "signs-1bit",
        "implementation": None,
        "budget_gb": 1.0,
        "mesh": "data=2,model=4",
        "fixed_batch": 8,
        "repeats": 1,
    }
    for said in on_two_hosts("vkq_apps.bench.worker", "throughput", json.dumps(setup)):
        row = json.loads(said.out.splitlines()[-1])  # the network says something before it
        assert row["status"] == "measured", row
        assert row["devices"] == 8
        assert row["collectives_per_step"]
        assert row["cache_bytes_per_device"] * 8 >= row["cache_bytes"]


def vkq_on_two_hosts(*commands: Sequence[str], codes: tuple[int, int] = (0, 0)) -> list[Said]:
    """Runs command lines one after another, on two devices each.

    `{n}` in them is the number of the process.
    """
    return on_two_hosts("tests.sharding.two_commands", json.dumps(commands), devices=2, codes=codes)


def answers_in(results: Path) -> dict[tuple[str, str, str], str]:
    """Answers by preset, task and sample."""
    _, *lines = log_path(results).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {(r["preset"], r["task"], r["sample"]): r["answer"] for r in records}


@pytest.mark.mesh
def test_the_same_commands_on_two_hosts_answer_and_calibrate_as_one(capsys, monkeypatch, tmp_path):
    """Results are written and shown by the first host alone."""
    monkeypatch.setattr(code_calibration, "calibrated_presets", {"vkq-1bit": RIVALS[:1]})
    asked = ["eval", "--tasks", "shapes", "--samples", "12", "--batch-size", "12"]
    asked += ["--quant", "vkq-1bit,keep-7%", "--by-layer", "--json", "--out"]
    fitted = ["calibrate", "--model", "tiny", "--quant", "vkq-1bit", "--samples", "4"]
    fitted += ["--max-new-tokens", "2", "--batch-size", "4", "--json", "--out"]
    told = ["generate", "--model", "tiny", "--image", str(PICTURE), "--prompt", "what is it?"]
    told += ["--no-compare", "--max-new-tokens", "4", "--json"]
    for command in ([*asked, str(tmp_path / "one.json")], [*fitted, str(tmp_path / "one")], told):
        with pytest.raises(SystemExit) as exit_:
            main(command)
        assert exit_.value.code == 0, capsys.readouterr().err
    _, calibrated, answered = map(json.loads, capsys.readouterr().out.splitlines())
    mesh = ["--mesh", "data=2,model=2"]
    first, second = vkq_on_two_hosts(
        [*asked, str(tmp_path / "{n}.json"), *mesh],
        [*fitted, str(tmp_path / "{n}"), *mesh],
        [*told, "--mesh", "model=4"],
    )
    assert second.out == ""
    shown, row, answer = map(json.loads, first.out.splitlines())
    assert answer["answer"] == answered["answer"]
    assert shown == json.loads((tmp_path / "0.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("one.json", "one.json.samples.jsonl", "one"),
        *("0.json", "0.json.samples.jsonl", "0"),
    }
    one, many = (answers_in(tmp_path / f"{name}.json") for name in ("one", "0"))
    assert many.keys() == one.keys()
    assert len(one) == 36
    robust = [key for key in one if key[0] in ("none", "vkq-1bit")]
    assert [many[key] for key in robust] == [one[key] for key in robust]
    tables = [vkq_jax.load_tables(tmp_path / name) for name in ("one", "0")]
    assert tables[1].model == tables[0].model
    assert jax.tree.structure(tables[1]) == jax.tree.structure(tables[0])
    # Roundings of bfloat16 lead k-means elsewhere: centroids are compared above, in float32.
    assert row["presets"] == calibrated["presets"]


@pytest.mark.mesh
def test_hosts_end_together(tmp_path):
    """Whether one cannot begin, their input differs, or one fails while the other works."""
    asked = ["eval", "--mesh", "data=2,model=2", "--batch-size", "2", "--samples", "2"]
    mine = f"jsonl={tmp_path}/{{n}}.jsonl"
    question = {"image": str(PICTURE), "question": "what?", "answer": "1"}
    (tmp_path / "0.jsonl").write_text(json.dumps(question))
    begun = vkq_on_two_hosts([*asked, "--data", mine], codes=(2, 2))
    assert "host 1 failed, and says itself why; this one stops, too" in begun[0].err
    assert "1.jsonl" in begun[1].err
    (tmp_path / "1.jsonl").write_text(json.dumps(question | {"question": "what then?"}))
    for host in vkq_on_two_hosts([*asked, "--data", mine], codes=(2, 2)):
        assert "host 1 has other input than host 0: expected the same weights, que" in host.err
    vkq_on_two_hosts(["fail", "0"], codes=(3, -signal.SIGABRT))
