"""The commands of `vkq bench` once their arguments are read: plan, measure, record."""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from models.sharding.mesh import check_devices, mesh_sizes
from vkq_apps.bench import device_memory, worker
from vkq_apps.bench.mesh_scaling import compare_meshes
from vkq_apps.bench.prefilling import PrefillSetup, compare_prefill
from vkq_apps.bench.quantize import QuantizeSetup, measure_quantize
from vkq_apps.bench.rows import attempt, run_groups
from vkq_apps.bench.scaling import ScalingSetup, compare_scaling, measure_scaling
from vkq_apps.bench.throughput import ThroughputSetup
from vkq_apps.bench.throughput_plan import compare_throughput, floors
from vkq_apps.bench.timing import bandwidth
from vkq_apps.files.provenance import provenance
from vkq_apps.files.results_file import ResultsFile
from vkq_apps.terminal.hosts import hosts_named
from vkq_jax.files.atomic_write import check_writable, reserved

__all__ = [
    "Output",
    "run_meshes",
    "run_prefill",
    "run_quantize",
    "run_scaling",
    "run_throughput",
]

Say = Callable[[str], None]


class Output:
    """Where rows go, and for how long they may be measured."""

    def __init__(self, path: Path | None, *, resume: bool, seconds: float | None, say: Say):
        """Checks the options, before anything is measured."""
        if resume and path is None:
            raise ValueError("--resume needs --out, the file to go on from")
        if path is not None:
            check_writable(path)
        if seconds is not None and math.isnan(seconds):
            raise ValueError("--seconds: expected a number, got nan")
        self.path, self.resume, self.seconds, self.say = path, resume, seconds, say

    @contextlib.contextmanager
    def open(self, command: str, head: dict[str, Any]) -> Iterator[ResultsFile]:
        """The file, with the rows that need no measuring; no other process may write it then."""
        with contextlib.nullcontext() if self.path is None else reserved(self.path):
            yield ResultsFile(self.path, {"command": command, **head}, resume=self.resume)


def run_throughput(groups: Sequence[Sequence[ThroughputSetup]], output: Output) -> ResultsFile:
    """Runs each row in a process of its own; this process never touches the device.

    Raises:
        OSError: the first process, which only looks at the device, fails.
        ValueError: a mesh takes more devices than there are.
    """
    return _run_apart("vkq bench throughput", "throughput", groups, output, compare_throughput)


def run_meshes(groups: Sequence[Sequence[ThroughputSetup]], output: Output) -> ResultsFile:
    """As `run_throughput`, for rows of one batch on several meshes."""
    return _run_apart("vkq bench scaling --mesh", "throughput", groups, output, compare_meshes)


def run_prefill(groups: Sequence[Sequence[PrefillSetup]], output: Output) -> ResultsFile:
    """As `run_throughput`, for prefills."""
    return _run_apart("vkq bench prefill", "prefill", groups, output, compare_prefill)


def _run_apart(
    command: str,
    task: str,
    groups: Sequence[Sequence[ThroughputSetup | PrefillSetup]],
    output: Output,
    compare: Callable[[dict[str, Any], Sequence[dict[str, Any]]], None],
) -> ResultsFile:
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        output.say("looking at the device")
        head = worker.call("probe", {})
        if "device" not in head:
            raise OSError(f"the device cannot be measured on: {head['message']}")
        devices = head.pop("devices")
        hosts, _ = hosts_named()
        for setup in itertools.chain(*groups):
            if setup.mesh is not None:
                check_devices(mesh_sizes(setup.mesh), hosts * devices, hosts)
        results = stack.enter_context(output.open(command, head))

        def measure(setup: ThroughputSetup | PrefillSetup) -> dict[str, Any]:
            row = worker.call(task, vars(setup), compile_cache=cache)
            floors(row, head["bandwidth"])
            return row

        run_groups(
            groups,
            measure,
            results,
            compare=compare,
            say=output.say,
            seconds=output.seconds,
        )
        return results


def run_quantize(setups: Sequence[QuantizeSetup], output: Output) -> ResultsFile:
    """All rows in this process."""
    device_memory.claim_memory()
    with output.open("vkq bench quantize", provenance()) as results:
        run_groups(
            [[setup] for setup in setups],
            lambda setup: attempt(lambda row: measure_quantize(setup, row), {}),
            results,
            compare=lambda row, group: None,
            say=output.say,
            seconds=output.seconds,
        )
    return results


def run_scaling(groups: Sequence[Sequence[ScalingSetup]], output: Output) -> ResultsFile:
    """Runs all rows in this process: bytes are counted, not read from the device's peak."""
    device_memory.claim_memory()
    head = provenance() | {"shape": groups[0][0].shape, "bandwidth": bandwidth()}
    with output.open("vkq bench scaling", head) as results:
        run_groups(
            groups,
            lambda setup: attempt(lambda row: measure_scaling(setup, row), {}),
            results,
            compare=compare_scaling,
            say=output.say,
            seconds=output.seconds,
        )
    return results
