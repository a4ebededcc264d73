"""Two processes of four devices each are one mesh of eight."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vkq_jax
from tests.sharding.cases import assert_same
from vkq_apps.cli.main import main
from vkq_apps.evals.records import log_path


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.mark.mesh
@pytest.mark.parametrize("mesh", ["data=2,model=4", "model=8"])
def test_two_processes_answer_as_one(cases, tmp_path, mesh):
    name = "8 KV heads"
    one = cases.generation(name, None, "signs-1bit")
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    port = free_port()
    processes = []
    for number in range(2):
        environment = os.environ | {
            "XLA_FLAGS": flags,
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        command = [sys.executable, "-m", "tests.sharding.two_hosts"]
        command += [str(cases.folder / name), mesh, str(tmp_path)]
        processes.append(
            subprocess.Popen(
                command,
                cwd=Path(__file__).parents[2],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, problem = process.communicate(timeout=300)
        assert process.returncode == 0, problem[-4000:]
    for number in range(2):
        result = json.loads((tmp_path / f"{number}.json").read_text())
        assert result["devices"] == [8, 4]
        np.testing.assert_array_equal(result["tokens"], one.tokens)
        # Each host reads the parts of its own devices: a part once, all parts or half of them.
        whole = 32 * 32
        assert sum(result["read"]) == (whole if mesh.startswith("data") else whole // 2)
    assert_same(vkq_jax.load_cache(tmp_path / "cache"), one.cache)


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
