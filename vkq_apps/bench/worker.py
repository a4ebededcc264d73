"""A process for one measurement; by hand `python -m vkq_apps.bench.worker TASK SETTINGS`.

A third argument, `--traceback`, shows where an error came from.

Prints one JSON object on stdout, progress on stderr. A process of its own has the device's memory
to itself, and a peak of memory that is its own. Whoever calls it must not use the device.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax

from vkq_apps.bench import device_memory
from vkq_apps.bench.prefilling import PrefillSetup, measure_prefill
from vkq_apps.bench.rows import attempt
from vkq_apps.bench.throughput import TRANSFORMERS, ThroughputSetup, measure_throughput
from vkq_apps.bench.timing import bandwidth
from vkq_apps.bench.transformers_baseline import measure_transformers
from vkq_apps.files.provenance import provenance
from vkq_apps.terminal.console import log
from vkq_apps.terminal.errors import show_tracebacks, tracebacks_shown
from vkq_apps.terminal.hosts import join_hosts, leave_hosts

__all__ = ["TASKS", "call", "main"]

Task = Callable[..., dict[str, Any]]

# Ctrl-C reaches both processes: the calling one hears it, and ends this one. A calling process that
# is killed cannot.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from vkq_apps.terminal.endings import end_with_parent; end_with_parent(); "
    "from vkq_apps.bench.worker import main; main(sys.argv[1:])"
)


def probe() -> dict[str, Any]:
    """The machine of a measurement: its devices, the memory and the bandwidth of one."""
    return provenance() | {
        "devices": jax.local_device_count(),
        "memory_limit": device_memory.limit(),
        "bandwidth": bandwidth(),
    }


def throughput(**settings: Any) -> dict[str, Any]:
    """A row without what its settings say already."""
    setup = ThroughputSetup(**settings)
    measure = measure_throughput
    if setup.implementation == TRANSFORMERS:
        jax.config.update("jax_platforms", "cpu")  # the device is PyTorch's
        measure = measure_transformers
    elif setup.mesh is not None:
        join_hosts()
    return attempt(lambda row: measure(setup, row, _say), {})


def prefill(**settings: Any) -> dict[str, Any]:
    """As `throughput`, of `vkq bench prefill`."""
    setup = PrefillSetup(**settings)
    if setup.mesh is not None:
        join_hosts()
    return attempt(lambda row: measure_prefill(setup, row, _say), {})


TASKS: dict[str, Task] = {"probe": probe, "throughput": throughput, "prefill": prefill}


def call(
    task: str, settings: dict[str, Any], *, compile_cache: str | None = None
) -> dict[str, Any]:
    """Runs a task in a fresh process, and returns what it printed.

    Args:
        task: a name of `TASKS`.
        settings: its arguments.
        compile_cache: folder in which processes leave compiled programs for each other, unless
            the environment names one.
    """
    environment = dict(os.environ)
    if compile_cache is not None:
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", compile_cache)
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    command = [sys.executable, "-c", _START, task, json.dumps(settings)]
    command += ["--traceback"] * tracebacks_shown()
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        message = f"the process ended with code {process.returncode}"
        return {"status": "failed", "message": message}
    return json.loads(lines[-1])


def main(arguments: list[str]) -> None:
    """Runs a task in this process."""
    device_memory.claim_memory()
    task, settings, *flags = arguments
    show_tracebacks("--traceback" in flags)
    # Nothing else may print in between: stdout is for the one object.
    result, sys.stdout = sys.stdout, sys.stderr
    record = TASKS[task](**json.loads(settings))
    print(json.dumps(record), file=result, flush=True)
    if record.get("status", "measured") != "measured":
        leave_hosts(0)


def _say(text: str) -> None:
    held = device_memory.in_use()
    memory = "" if held is None else f" ({held / 1e9:.1f} GB in use)"
    log.print(f"    {text}{memory}")


if __name__ == "__main__":
    main(sys.argv[1:])
