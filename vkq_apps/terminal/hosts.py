"""Several hosts as one machine: each runs the same command, in one process of `jax.distributed`."""

import hashlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from models import read_config
from models.families.mesh_fit import check_fit
from models.inputs.on_mesh import check_divides
from models.sharding.mesh import make_mesh, mesh_sizes
from vkq_apps.terminal.console import log, out
from vkq_apps.terminal.endings import at_failure

__all__ = [
    "HOSTS_HELP",
    "check_mesh",
    "check_mesh_of",
    "hosts_named",
    "join_hosts",
    "leave_hosts",
    "leave_results_to_first",
    "on_all_hosts",
]

_ADDRESS, _COUNT, _NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_SCHEDULERS = (
    ("SLURM_NTASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)
_SILENCE = 30
"""Seconds without a sign of life after which JAX takes a host for dead, and ends the others."""
_PARTING = 5
"""Seconds that a host which failed waits for the others to fail, too."""

HOSTS_HELP = (
    "On several hosts run the same command on each, by srun or mpirun, or with the variables that "
    "docs/scaling_out.md names."
)


def check_mesh(text: str | None) -> str | None:
    """The callback of `--mesh`: finds the other hosts before JAX starts, then the devices."""
    if text is not None:
        mesh_sizes(text)
        join_hosts()
        make_mesh(text)
    return text


def check_mesh_of(source: str, mesh: str | None, batch: int | None = None) -> None:
    """Checks that a mesh splits a model and batches, before anything of them is read.

    Args:
        source: folder of the model.
        mesh: from `check_mesh`.
        batch: sequences at once, where `data` has to divide their number.

    Raises:
        NotImplementedError, ValueError: as `models.load`, or `data` does not divide the batch.
    """
    if mesh is not None:
        sizes = mesh_sizes(mesh)
        check_fit(sizes.model, read_config(source))
        if batch is not None:
            check_divides(sizes.data, batch)


def join_hosts() -> None:
    """Makes the processes of all hosts one, where the environment names several.

    The first one alone shows and writes results. A host that fails ends all, see `leave_hosts`.

    Raises:
        ValueError: the environment names an address without the numbers that belong to it.
    """
    address, scheduled = os.environ.get(_ADDRESS), _scheduled()
    if jax.distributed.is_initialized() or not (address or scheduled):
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    if scheduled:
        jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE)
    else:
        count, number = hosts_named()
        jax.distributed.initialize(
            address,
            num_processes=count,
            process_id=number,
            heartbeat_timeout_seconds=_SILENCE,
        )
    at_failure.append(leave_hosts)
    _keep_stdout()
    if jax.process_index():
        leave_results_to_first()


def leave_hosts(code: int) -> None:
    """Parts from the other hosts where this one failed, which may end the process.

    Hosts that fail together part in order. Those that go on would wait for this one without end:
    where they have not failed a moment later, too, this process ends with `code`, and JAX ends
    theirs for want of it.
    """
    if not jax.distributed.is_initialized():
        return
    parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    parting.start()
    parting.join(_PARTING)
    if parting.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def on_all_hosts() -> Iterator[dict[str, Callable[[], Any]]]:
    """A block that all hosts get through with the same input, or that fails on all of them.

    It runs nothing that hosts compute together.

    Yields:
        A dictionary for what has to be alike on all hosts, by name: functions whose results are
        told apart by their `repr`. One host alone does not call them.

    Raises:
        ValueError: another host failed, or has other input.
    """
    alike: dict[str, Callable[[], Any]] = {}
    if not jax.distributed.is_initialized():
        yield alike
        return
    try:
        yield alike
        own = repr({name: make() for name, make in alike.items()})
    except Exception:
        _exchange(b"")
        raise
    found = _exchange(hashlib.sha256(own.encode()).digest())
    for number, digest in enumerate(found):
        if not any(digest):
            raise ValueError(f"host {number} failed, and says itself why; this one stops, too")
        if (digest != found[0]).any():
            raise ValueError(
                f"host {number} has other input than host 0: expected the same {', '.join(alike)} "
                "on each, from the same command and copies of the same files"
            )


def _exchange(digest: bytes) -> np.ndarray:
    """The digests of all hosts, 32 bytes or fewer each, in rows of uint8."""
    own = np.frombuffer(digest.ljust(32, b"\0"), np.uint8)
    return np.asarray(multihost_utils.process_allgather(own))


def hosts_named() -> tuple[int, int]:
    """How many processes the environment names, and the number of this one; starts nothing.

    Raises:
        ValueError: as `join_hosts`.
    """
    if (names := _scheduled()) is None:
        if not (address := os.environ.get(_ADDRESS)):
            return 1, 0
        names = _COUNT, _NUMBER
        numbers = [os.environ.get(name, "") for name in names]
        if not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f"{_ADDRESS}={address}: expected numbers in {_COUNT} and {_NUMBER} beside it, got "
                f"{numbers[0]!r} and {numbers[1]!r}"
            )
    count, number = map(_whole, names)
    return count, number


def _keep_stdout() -> None:
    """Leaves stdout to results: Gloo, JAX's collectives of CPUs, greets the other hosts there."""
    python = sys.stdout
    if python is sys.__stdout__ and isinstance(python, io.TextIOWrapper):  # not where tests look on
        python.flush()
        own = os.dup(python.fileno())
        os.dup2(sys.stderr.fileno(), python.fileno())
        sys.stdout = open(own, "w", encoding=python.encoding, errors=python.errors)  # noqa: SIM115


def leave_results_to_first() -> None:
    """Lets this process print nothing more but errors."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    log.quiet = out.quiet = True


def _scheduled() -> tuple[str, str] | None:
    """Names of a scheduler's count of processes and number of this one, where it names several."""
    return next((names for names in _SCHEDULERS if _whole(names[0]) > 1), None)


def _whole(name: str) -> int:
    """The whole number in a variable of the environment; 0 where it is not set."""
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, got {text[:40]!r}")
    return int(text)
