"""`--mesh`: what it takes, and how the processes of several hosts find each other."""

import jax
import pytest

from vkq_apps.cli import hosts
from vkq_apps.cli.main import main


@pytest.fixture
def joined(monkeypatch):
    """The arguments that `jax.distributed.initialize` was called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_host_stays_alone(joined):
    assert hosts.check_mesh("data=2,model=4") == "data=2,model=4"
    assert hosts.check_mesh(None) is None
    assert joined == []


def test_hosts_find_each_other_by_the_environment(joined, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host0:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ValueError, match="expected numbers in JAX_NUM_PROCESSES and JAX_PROCESS"):
        hosts.join_hosts()
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    hosts.check_mesh("data=2")
    assert joined == [(("host0:8476",), {"num_processes": 2, "process_id": 0})]


def test_a_scheduler_names_the_hosts_by_itself(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    hosts.join_hosts()
    assert joined == [((), {})]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--model", "tiny", "--mesh", "tensor=2"], "such as data=2,model=4"),
        (["eval", "--mesh", "data=two"], "such as data=2,model=4, got 'data=two'"),
        (["bench", "throughput", "--mesh", "data=2", "--mesh", "x"], "data=2,model=4, got 'x'"),
        (
            ["bench", "scaling", "--mesh", "data=2", "--length", "64"],
            "--length: with --mesh prompts have the visual tokens of their shape",
        ),
    ],
)
def test_a_bad_mesh_is_one_clear_line(capsys, joined, arguments, said):
    picture = ["--image", "examples/pictures/receipt.png", "--prompt", "what?"]
    with pytest.raises(SystemExit) as exit_:
        main(arguments + picture * (arguments[0] == "generate"))
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert said in " ".join(captured.err.split())
    assert captured.out == ""
    assert joined == []
