"""Two processes of four devices each are one mesh of eight."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import models
import vkq_jax
from tests.sharding.cases import assert_same, inputs_of
from vkq_apps.cli.main import main
from vkq_apps.evals.records import log_path


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def on_two_hosts(*command: str) -> list[str]:
    """The output of two processes of four devices each, which share a mesh of eight."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
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
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, problem) in zip(processes, said, strict=True):
        assert process.returncode == 0, problem[-4000:]
    return [shown for shown, _ in said]


@pytest.mark.mesh
@pytest.mark.parametrize("mesh", ["data=2,model=4", "model=8"])
def test_two_processes_answer_as_one(cases, tmp_path, mesh):
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
    if mesh.startswith("data"):  # which the program calibrates
        model = cases.model(name)
        expected = models.calibrate_scores(model, [inputs_of(model)], max_new_tokens=2)
        for result in results:
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
    for shown in on_two_hosts("vkq_apps.bench.worker", "throughput", json.dumps(setup)):
        row = json.loads(shown.splitlines()[-1])  # the network says something before it
        assert row["status"] == "measured", row
        assert row["devices"] == 8
        assert row["collectives_per_step"]
        assert row["cache_bytes_per_device"] * 8 >= row["cache_bytes"]


@pytest.mark.mesh
def test_the_command_line_answers_on_a_mesh_as_without(capsys, tmp_path):
    """`vkq eval` of the embedded model gives the same answers, whatever the devices."""
    answers = []
    for mesh in ([], ["--mesh", "data=2,model=2"]):
        file = tmp_path / f"{len(mesh)}.json"
        options = ["--samples", "6", "--batch-size", "6", "--quant", "vkq-1bit", "--json"]
        with pytest.raises(SystemExit) as exit_:
            main(["eval", *options, *mesh, "--out", str(file)])
        assert exit_.value.code == 0, capsys.readouterr().err
        _, *lines = log_path(file).read_text().splitlines()
        records = [json.loads(line) for line in lines]
        answers.append({(r["preset"], r["task"], r["sample"]): r["answer"] for r in records})
    one, many = answers
    assert len(one) == 12
    assert many == one
