"""Several hosts as one machine: each runs the same command, in one process of `jax.distributed`."""

import os
import sys

import jax

from models.sharding.mesh import check_text
from vkq_apps.cli.console import log, out

__all__ = ["HOSTS_HELP", "check_mesh", "hosts_named", "join_hosts", "leave_results_to_first"]

_ADDRESS, _COUNT, _NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_SCHEDULERS = (
    ("SLURM_NTASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)

HOSTS_HELP = (
    "On several hosts run the same command on each, by srun or mpirun, or with the variables that "
    "docs/scaling_out.md names."
)


def check_mesh(text: str | None) -> str | None:
    """The callback of `--mesh`: checks the text, and finds the other hosts before JAX starts."""
    if text is not None:
        check_text(text)
        join_hosts()
    return text


def join_hosts() -> None:
    """Makes the processes of all hosts one, where the environment names several.

    The first one alone shows and writes results.

    Raises:
        ValueError: the environment names an address without the numbers that belong to it.
    """
    address, scheduled = os.environ.get(_ADDRESS), _scheduled()
    if jax.distributed.is_initialized() or not (address or scheduled):
        return
    if scheduled:
        jax.distributed.initialize()
    else:
        count, number = hosts_named()
        jax.distributed.initialize(address, num_processes=count, process_id=number)
    if jax.process_index():
        leave_results_to_first()


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
