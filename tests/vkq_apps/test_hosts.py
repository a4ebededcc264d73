"""`--mesh`: what it takes, and how the processes of several hosts find each other."""

import sys

import jax
import pytest

from vkq_apps.bench import worker
from vkq_apps.cli.main import main
from vkq_apps.terminal import hosts

BARE = {"message": "", "bandwidth": 1.0, "devices": 2}


@pytest.fixture
def joined(monkeypatch):
    """The arguments that `jax.distributed.initialize` was called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(hosts, "at_failure", [])
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_host_stays_alone(joined):
    assert hosts.check_mesh("data=1,model=1") == "data=1,model=1"
    assert hosts.check_mesh(None) is None
    assert joined == []


def test_hosts_find_each_other_by_the_environment(joined, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host0:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ValueError, match="expected numbers in JAX_NUM_PROCESSES and JAX_PROCESS"):
        hosts.join_hosts()
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    hosts.check_mesh("data=1")
    options = {"num_processes": 2, "process_id": 0, "heartbeat_timeout_seconds": 30}
    assert joined == [(("host0:8476",), options)]


def test_a_scheduler_names_the_hosts_by_itself(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    hosts.join_hosts()
    assert joined == [((), {"heartbeat_timeout_seconds": 30})]
    assert hosts.at_failure == [hosts.leave_hosts]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--model", "tiny", "--mesh", "tensor=2"], "such as data=2,model=4"),
        (["eval", "--mesh", "data=two"], "such as data=2,model=4, got 'data=two'"),
        (["eval", "--mesh", "data=2"], "vkq: error: mesh data=2 needs 2 devices, there are 1"),
        (["calibrate", "--model", "tiny", "--mesh", "model=2"], "error: mesh model=2 needs 2 dev"),
        (["generate", "--model", "x", "--mesh", "data=3"], "error: mesh data=3 needs 3 devices"),
        (["bench", "scaling", "--mesh", "model=3"], "model=3 does not divide num_attention_heads"),
        (["bench", "throughput", "--mesh", "data=2", "--mesh", "x"], "data=2,model=4, got 'x'"),
        (
            ["bench", "scaling", "--mesh", "data=2", "--length", "64"],
            "--length: with --mesh prompts have the visual tokens of their shape",
        ),
        (["bench", "scaling", "--weak-scaling"], "--weak-scaling: expected --mesh, whose data"),
        (["bench", "scaling", "--profile"], "--profile: expected --mesh, whose decode steps"),
    ],
)
def test_a_bad_mesh_is_one_clear_line(capsys, joined, arguments, said):
    picture = ["--image", "examples/pictures/receipt.png", "--prompt", "what?"]
    with pytest.raises(SystemExit) as exit_:
        main(arguments + picture * (arguments[0] == "generate"))
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert said in " ".join(captured.err.split())
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert joined == []


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"])
def test_numbers_of_a_scheduler_that_are_none_are_named(monkeypatch, name):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    for wrong in ("two", "-2", "2.5"):
        monkeypatch.setenv(name, wrong)
        if name == "OMPI_COMM_WORLD_SIZE":
            monkeypatch.delenv("SLURM_NTASKS", raising=False)
        with pytest.raises(ValueError, match=f"{name}: expected a whole number, got '{wrong}'"):
            hosts.hosts_named()


@pytest.mark.parametrize(
    "option", [["--resume", "--out", "rows.json"], ["--seconds", "9"], ["--mesh", "none"]]
)
def test_hosts_that_measure_together_take_no_option_of_one(capsys, joined, monkeypatch, option):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert hosts.hosts_named() == (2, 1)
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "scaling", "--mesh", "data=2", *option])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert option[0] in said
    assert ": expected one host, got 2" in said


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_hosts_that_work_together_resume_nothing(capsys, joined, monkeypatch, tmp_path, command):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("models.load", None)
    with pytest.raises(SystemExit) as exit_:
        main([command, "--model", "tiny", "--resume", "--out", str(tmp_path / "results")])
    assert exit_.value.code == 2
    assert "--resume: expected one host" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_first_host_alone_keeps_rows(capsys, joined, monkeypatch, tmp_path):
    """The others measure the same rows and show nothing."""
    calls = []

    def call(task, settings, *, compile_cache=None):
        calls.append(settings.get("fixed_batch"))
        return {"status": "not supported", "device": "cpu", "commit": "0", "time": "0", **BARE}

    monkeypatch.setattr(worker, "call", call)
    monkeypatch.setattr(hosts.log, "quiet", False)
    monkeypatch.setattr(hosts.out, "quiet", False)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    meshes = ["--mesh", "data=4", "--mesh", "model=4", "--weak-scaling", "--batch", "8"]
    for number in (0, 1):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        stdout = sys.stdout
        with pytest.raises(SystemExit) as exit_:
            main(["bench", "scaling", *meshes, "--out", str(tmp_path / f"{number}.json")])
        if number:
            sys.stdout.close()  # the stand-in that swallowed the output
        monkeypatch.setattr(sys, "stdout", stdout)
        assert exit_.value.code == 0
    assert (tmp_path / "0.json").exists()
    assert not (tmp_path / "1.json").exists()
    assert calls == [None, 32, 32, 8, 8] * 2


def test_all_meshes_are_checked_before_a_row_is_measured(capsys, joined, monkeypatch):
    calls = []

    def call(task, settings, *, compile_cache=None):
        calls.append(task)
        return {"device": "cpu", **BARE}

    monkeypatch.setattr(worker, "call", call)
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "scaling", "--mesh", "data=1", "--mesh", "data=4"])
    assert exit_.value.code == 2
    assert "mesh data=4 needs 4 devices, there are 2" in capsys.readouterr().err
    assert calls == ["probe"]


def test_one_device_without_a_mesh_stands_beside_meshes(capsys, monkeypatch):
    found = []

    def call(task, settings, *, compile_cache=None):
        found.append((settings.get("mesh"), settings.get("fixed_batch")))
        return {"status": "not supported", "device": "cpu", "commit": "0", "time": "0", **BARE}

    monkeypatch.setattr(worker, "call", call)
    meshes = ["--mesh", "none", "--mesh", "data=1", "--weak-scaling", "--batch", "8"]
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "scaling", *meshes, "--baseline", "none"])
    assert exit_.value.code == 0
    assert found[1:] == [(None, 8), ("data=1", 8)]
    assert "none" in capsys.readouterr().out
